"""FGSM and PGD by hand, one example after another, and what the gates catch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reliability_subjects import data, network, read, same
from torch import nn

from microtome.instruments.security.adversarial_accuracy import AdversarialAccuracy
from microtome.passes.run import run_instruments
from microtome.signals.noise import row_counters, row_uniform
from microtome.subject import Subject

LADDER = (0.02, 0.1, 0.3)


def slope(model, x, y):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(model(x).double(), y, reduction="sum"), x)[0]


def answer(model, x):
    with torch.no_grad():
        return int(model(x).argmax(1))


def pgd(model, x, y, row, sizes=(*LADDER, 1.0), steps=4):
    """(whether it breaks, the change that breaks it) for one example [1, d]."""
    counters = row_counters(torch.tensor([row]), x[0].numel())
    start = (2 * row_uniform(counters, 0) - 1).to(x.dtype).reshape(x.shape) * sizes[0]
    moved = (x + start).clamp(0, 1)
    for e in sizes:
        for _ in range(steps):
            if answer(model, moved) != int(y):
                return True, float((moved - x).abs().max())
            change = moved + slope(model, moved, y).sign() * 2.5 * e / steps - x
            moved = (x + change.clamp(-e, e)).clamp(0, 1)
    return answer(model, moved) != int(y), float((moved - x).abs().max())


def boxed(dtype, size=50):
    """The data squeezed into 0..1."""
    return [((x.tanh() + 1) / 2, y) for x, y in data(dtype, size, 60)]


class Unbox(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.inner = network(dtype)

    def forward(self, x):
        return self.inner(torch.atanh((2 * x - 1) * 0.999))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_attacks_by_hand(dtype):
    model, batches = Unbox(dtype).requires_grad_(False), boxed(dtype)
    finding = read(AdversarialAccuracy(strengths=LADDER, at=0.1, steps=4), model, batches, bounds=(0, 1))
    x, y = (torch.cat([b[i] for b in batches]) for i in range(2))
    with torch.no_grad():
        good = model(x).argmax(1) == y
    broken, sizes = [], []
    for i in range(60):
        hit, size = pgd(model, x[i : i + 1], y[i : i + 1], i) if good[i] else (False, 0.0)
        broken.append(hit)
        sizes.append(size)
    broken, sizes, good = np.array(broken), np.array(sizes), good.numpy()
    rows = finding.tables["strengths"].rows
    for row, e in zip(rows, LADDER, strict=True):
        assert row[1] == pytest.approx(np.mean(good & ~(broken & (sizes <= e + 1e-6))))
        step = (x + slope(model, x, y).sign() * e).clamp(0, 1)
        with torch.no_grad():
            assert row[2] == pytest.approx(float((model(step).argmax(1) == y).double().mean()))
    assert finding.quantities["clean accuracy"].value == pytest.approx(good.mean())
    assert rows[0][1] > rows[1][1] > rows[2][1]
    assert finding.quantities["gates failed"].value == 0
    assert finding.value == finding.arrays["samples"].mean()


def test_an_example_broken_early_is_not_attacked_again():
    model, batches = Unbox(torch.float32), boxed(torch.float32)
    asked = []
    forward = model.inner.forward

    def counting(x):
        asked.append(len(x))
        return forward(x)

    subject = Subject(model, batches, bounds=(0, 1))
    model.inner.forward = counting
    options = {"strengths": LADDER, "at": 0.1, "steps": 10}
    run_instruments(subject, {"i": AdversarialAccuracy(**options)})
    plain = 60 * (4 * 10 + 3 * 3 + 3 * 17)  # every strength in full, and everything else
    assert sum(asked) < 0.6 * plain


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_batch_size_does_not_matter(norm):
    model = Unbox(torch.float64)
    attack = AdversarialAccuracy(strengths=LADDER, norm=norm, steps=4)
    readings = [read(attack, model, boxed(torch.float64, size), bounds=(0, 1)) for size in (7, 64)]
    same(*readings)
    assert readings[0].tables["strengths"] == readings[1].tables["strengths"]


def test_changes_stay_in_the_l2_ball():
    model, batches = Unbox(torch.float64), boxed(torch.float64)
    finding = read(AdversarialAccuracy(strengths=(0.05,), at=0.05, norm="l2"), model, batches, bounds=(0, 1))
    assert finding.status == "measured"
    inside = read(AdversarialAccuracy(strengths=(0.05,), at=0.05), model, batches, bounds=(0, 1))
    assert finding.value <= inside.value  # this ball holds the cube


def test_without_bounds_the_range_is_that_of_the_sample():
    model, batches = network(torch.float64), data(torch.float64, count=60)
    finding = read(AdversarialAccuracy(steps=3), model, batches)
    x = torch.cat([b[0] for b in batches])
    assert finding.rounds == 2
    assert any(f"{float(x.min()):.3g} to {float(x.max()):.3g}" in caveat for caveat in finding.caveats)


def test_a_saturated_network_still_has_a_slope():
    """In float32 its probabilities round to 1, and a float32 loss would be flat."""
    model, batches = network(scale=15.0), data(count=60)
    finding = read(AdversarialAccuracy(steps=5), model, batches)
    assert finding.tables["gates"].rows[0][2] < 0.05


def test_tokens_are_attacked_at_their_embedding():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.head = nn.Embedding(9, 5), nn.Linear(5, 3)

        def forward(self, tokens):
            return self.head(self.embed(tokens).mean(1))

    tokens = torch.randint(0, 9, (30, 4))
    model = Tagger()
    with torch.no_grad():
        y = model(tokens).argmax(1)
    finding = read(AdversarialAccuracy(steps=3), model, [(tokens, y)])
    assert finding.status == "measured"
    assert finding.quantities["clean accuracy"].value == 1
    assert any("embed" in caveat for caveat in finding.caveats)


def test_refusals_and_edges():
    x, y = torch.randn(20, 6), torch.randn(20, 2)
    assert "classes" in read(AdversarialAccuracy(), nn.Linear(6, 2), [(x, y)]).reason
    assert "norm" in read(AdversarialAccuracy(norm="l1"), network(), data()).reason
    one = read(AdversarialAccuracy(steps=2), network(), [(x[:1], torch.tensor([0]))])
    assert one.status == "measured" or "range" in one.reason
    zero = read(AdversarialAccuracy(), network(), [(torch.zeros(4, 6), torch.arange(4))])
    assert "same number" in zero.reason or zero.status == "measured"
    missed = [(torch.eye(4), (torch.arange(4) + 1) % 4)]
    wrong = read(AdversarialAccuracy(steps=2), nn.Identity(), missed, outputs="logits")
    assert wrong.value == 0
