"""Lines, curvatures and paths of populations, against direct loops and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from microtome.errors import UsageError
from microtome.nn.skip_mlp import SkipMLP
from microtome.population import Population
from microtome.population import landscape as land


def mlp():
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))


@pytest.fixture
def population():
    return Population.of(mlp, [0, 1])


X, Y = torch.randn(20, 5, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 3


def test_every_filter_moves_by_its_own_length(population):
    along = land.directions(population, 4)
    assert not along["0.bias"].any()
    torch.testing.assert_close(along["0.weight"].norm(dim=2), population.parameters["0.weight"].norm(dim=2))
    raw = land.directions(population, 4, "raw")
    torch.testing.assert_close(raw["2.weight"][0], raw["2.weight"][1])


def test_a_line_is_the_loss_of_moved_networks(population):
    along = land.directions(population, 0)
    found = land.line(population, along, [0.0, 0.7], X, Y)
    for i in range(2):
        network = population.member(i)
        with torch.no_grad():
            assert float(found[i, 0]) == pytest.approx(float(F.cross_entropy(network(X), Y)), rel=1e-5)
            for name, p in network.named_parameters():
                p += 0.7 * along[name][i]
            assert float(found[i, 1]) == pytest.approx(float(F.cross_entropy(network(X), Y)), rel=1e-5)


def test_rescaled_layers_give_one_line_only_when_normalised(population):
    other = land.rescaled(population, "0", "2", torch.tensor(8.0))
    torch.testing.assert_close(other.predict(X), population.predict(X))
    steps = [-1.0, 0.0, 1.0]
    one, two = (land.line(p, land.directions(p, 2), steps, X, Y) for p in (population, other))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    raw = land.directions(population, 2, "raw")
    assert not torch.allclose(
        land.line(population, raw, steps, X, Y), land.line(other, raw, steps, X, Y), rtol=0.05
    )
    with pytest.raises(UsageError, match="no 'nine"):
        land.rescaled(population, "nine", "2", torch.tensor(2.0))


def test_extreme_curvatures_are_those_of_the_hessian(population):
    low, high = land.extreme_curvatures(population, X, Y, steps=66)
    for i in range(2):
        network = population.member(i)
        names = [n for n, _ in network.named_parameters()]
        shapes = [p.shape for p in network.parameters()]

        def loss(flat, network=network, names=names, shapes=shapes):
            parts = flat.split([s.numel() for s in shapes])
            state = {n: v.reshape(s) for n, v, s in zip(names, parts, shapes, strict=True)}
            return F.cross_entropy(torch.func.functional_call(network, state, (X,)), Y)

        values = torch.linalg.eigvalsh(torch.func.hessian(loss)(population.vectors()[i]))
        assert float(low[i]) == pytest.approx(float(values[0]), abs=1e-3 * float(values[-1]))
        assert float(high[i]) == pytest.approx(float(values[-1]), rel=1e-3)


def test_non_convexity_of_a_parabola_and_of_a_hat():
    at = torch.linspace(-1, 1, 9).double()
    assert land.non_convexity(torch.stack([at**2, -(at**2)])).tolist() == [0, 1]


def test_a_long_walk_has_the_share_that_theory_gives():
    walk = torch.randn(400, 1, 4000, generator=torch.Generator().manual_seed(0)).cumsum(0)
    assert float(land.path_share(walk, 1)) == pytest.approx(8 / math.pi**2, abs=0.02)
    assert land.random_walk_share(2) == pytest.approx(8 / math.pi**2 * (1 + 1 / 9))
    straight = torch.arange(9.0)[:, None, None] * torch.ones(1, 1, 5)
    assert float(land.path_share(straight, 1)) == pytest.approx(1)


def test_skips_change_the_function_and_not_the_parameters():
    torch.manual_seed(0)
    one = SkipMLP(5, 8, 3, 2, skip=True)
    two = SkipMLP(5, 8, 3, 2, skip=False)
    two.load_state_dict(one.state_dict())
    h = one.stem(X)
    for layer in one.hidden:
        h = h + F.relu(layer(F.layer_norm(h, (8,))))
    torch.testing.assert_close(one(X), one.head(F.layer_norm(h, (8,))))
    assert not torch.allclose(one(X), two(X))
