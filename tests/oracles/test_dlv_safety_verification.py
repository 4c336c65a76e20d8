"""The search of a grid against brute force: every point of every grid, on every query."""

import itertools

import numpy as np
import pytest
import torch
from asking import read as ask
from torch import nn

from microtome.folds import Collect
from microtome.instruments.security.dlv_safety_verification import SafetyVerification
from microtome.laws.subjects import regression, tokens
from microtome.passes.run import run_instruments
from microtome.signals import derive, rows
from microtome.signals.bounds import METHODS
from microtome.signals.discretised import Discretised
from microtome.signals.interpretation import interpreted
from microtome.subject import Subject


def _key(found, *, key):
    return found[key]


def network(seed: int, outputs: int = 3, inputs: int = 6) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, outputs)
    ).double()


def searched(model, x, size=16, **options):
    labels = torch.arange(len(x)) % 3 if model[-1].out_features > 1 else torch.arange(len(x)) % 2
    batches = list(zip(x.split(size), labels.split(size), strict=True))
    subject = Subject(model, batches, bounds=(0, 1), task="classification")
    keys = ("safe", "witness", "boxes", "points", "free", "grid", "at once")
    signal = interpreted(Discretised(**options))
    found = ask(subject, Collect(signals=(rows, *(derive(_key, signal, key=k) for k in keys))))
    return dict(zip(keys, found[1:], strict=True))


def answers(model, x):
    with torch.no_grad():
        out = model(x)
    return out.argmax(-1) if out.shape[-1] > 1 else (out[..., 0] > 0).long()


def brute_force(model, x, free, grid):
    """[n] whether no point of the grid is answered otherwise."""
    safe = []
    for one, positions, values in zip(x, free, grid, strict=True):
        combos = torch.tensor(list(itertools.product(*values.tolist())), dtype=x.dtype)
        points = one.repeat(len(combos), 1)
        points[:, positions] = combos
        safe.append(bool((answers(model, points) == answers(model, one[None])).all()))
    return np.array(safe)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("free", "levels", "radius"), [(3, 5, 0.15), (4, 3, 0.4), (5, 3, 0.25), (2, 9, 0.5)])
def test_agrees_with_brute_force_on_every_query(method, free, levels, radius):
    both = set()
    for seed, outputs in ((0, 3), (1, 3), (2, 1), (3, 5)):
        model = network(seed, outputs)
        torch.manual_seed(10 + seed)
        x = torch.rand(24, 6, dtype=torch.float64)
        found = searched(model, x, free=free, levels=levels, radius=radius, method=method)
        truth = brute_force(model, x, found["free"], found["grid"])
        assert (found["safe"].numpy() == truth).all()
        both |= set(truth.tolist())
        changed = answers(model, found["witness"]) != answers(model, x)
        assert (changed.numpy() == ~truth).all()
        # A witness lies on the grid, and moves nothing but the free inputs.
        for i in np.flatnonzero(~truth):
            moved = (found["witness"][i] != x[i]).nonzero()[:, 0].tolist()
            assert set(moved) <= set(found["free"][i].tolist())
            for position, values in zip(found["free"][i], found["grid"][i], strict=True):
                assert float(found["witness"][i, position]) in values.tolist()
        assert (found["boxes"] + found["points"] <= 3 * levels**free).all()
        assert bool(found["safe"][found["at once"]].all())
    assert both == {True, False}  # the queries are of both kinds


def test_the_search_finds_what_no_gradient_shows():
    """A dent in the middle of the grid: neither the ends nor the slope at the input tell of it."""

    class Dent(nn.Module):
        def __init__(self):
            super().__init__()
            self.out_features = 2

        def forward(self, x):
            height = torch.relu(0.1 - (x[:, 0] - 0.6).abs())  # away from 0.5 to 0.7 there is nothing
            return torch.stack([0.05 + 0.01 * x[:, 1], 2 * height + 0 * x[:, 1]], dim=1)

    x = torch.tensor([[0.4, 0.5], [0.1, 0.5]], dtype=torch.float64)
    subject = Subject(Dent(), [(x, torch.tensor([0, 1]))], bounds=(0, 1))
    found = run_instruments(subject, {"i": SafetyVerification(radius=0.2, free=2, levels=5)})["i"]
    assert found.arrays["samples"].tolist() == [0.0, 1.0]
    assert found.arrays["witness"][0, 0] == pytest.approx(0.6)


def test_each_example_is_searched_as_if_it_were_alone():
    model = network(4)
    x = torch.rand(20, 6, dtype=torch.float64)
    one, many = (searched(model, x, size=s, free=4, levels=3, radius=0.4) for s in (1, 20))
    for key in one:
        assert torch.equal(one[key], many[key]), key


def test_tighter_bounds_look_at_less():
    model = network(5)
    x = torch.rand(20, 6, dtype=torch.float64)
    loose, tight = (
        searched(model, x, free=5, levels=4, radius=0.3, method=m) for m in ("interval", "linear")
    )
    assert int(tight["boxes"].sum()) < int(loose["boxes"].sum())


def test_refusals():
    assert "integers" in run_instruments(tokens(), {"i": SafetyVerification()})["i"].reason
    assert "classes" in run_instruments(regression(), {"i": SafetyVerification()})["i"].reason
    subject = Subject(network(0), [(torch.rand(9, 6).double(), torch.arange(9) % 3)], bounds=(0, 1))
    assert "points" in run_instruments(subject, {"i": SafetyVerification(free=9, levels=9)})["i"].reason
