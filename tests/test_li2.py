"""Energies of units and their ascent, and the orthogonal steps of Muon."""

from __future__ import annotations

import pytest
import torch

from microtome.data.modular import modular
from microtome.learn.energy import centred_one_hot, centred_squared_error, unit_energy
from microtome.nn.modular_mlp import ModularMLP
from microtome.population import Population, Recipe, train
from microtome.population.energy_ascent import energy_ascent
from microtome.population.muon import Muon, orthogonalised


def test_energy_is_what_the_targets_share_with_the_hidden_values():
    y = torch.tensor([0, 1, 1, 2])
    hidden = torch.tensor([[1.0, 5.0], [2.0, 5.0], [4.0, 5.0], [0.0, 5.0]])
    targets = centred_one_hot(y, 3)
    expected = sum(float((targets[:, j] @ hidden[:, 0]) ** 2) for j in range(3)) / 2
    found = unit_energy(hidden, targets)
    assert float(found[0]) == pytest.approx(expected)
    assert float(found[1]) == pytest.approx(0.0, abs=1e-9)  # a constant unit says nothing of the targets


def test_centred_error_does_not_see_a_bias():
    y, out = torch.tensor([0, 2, 1]), torch.randn(3, 4)
    shifted = out + torch.tensor([1.0, -2.0, 3.0, 0.5])
    assert torch.allclose(centred_squared_error(out, y), centred_squared_error(shifted, y))
    assert float(centred_squared_error(torch.eye(4)[y], y)) == pytest.approx(0.0, abs=1e-12)


def test_with_the_last_layer_just_before_its_fit_descent_is_ascent_of_the_energies():
    """w proportional to Y^T F, tiny, as one step from 0 gives: then the signal is Y Y^T F times a small number."""
    data = modular(5, 0.8, ["x+y"], [0])
    torch.manual_seed(0)
    net = ModularMLP(5, 6).double()
    targets = centred_one_hot(data.y[0], 5).double()
    net.w.data = 1e-6 * targets.T @ net.hidden(data.x[0]).detach()
    population = Population([net])
    cosine, _ = energy_ascent(centred_squared_error, data.x, data.y, 5)(population)[0]
    assert float(cosine) == pytest.approx(1.0, abs=1e-4)
    net.w.data = -net.w.data
    cosine, _ = energy_ascent(centred_squared_error, data.x, data.y, 5)(Population([net]))[0]
    assert float(cosine) == pytest.approx(-1.0, abs=1e-4)


@pytest.mark.parametrize("shape", [(2, 6, 4), (2, 4, 6)])
def test_directions_stay_and_lengths_become_one(shape):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    found = u.mT @ orthogonalised(x) @ v.mT
    strengths = found.diagonal(dim1=-2, dim2=-1)
    assert ((strengths > 0.5) & (strengths < 1.3)).all()
    assert torch.allclose(found, torch.diag_embed(strengths), atol=1e-9)


def test_a_member_moves_as_if_alone():
    data = modular(5, 0.8, ["x+y"] * 2, [0, 1])
    both = Population.of(lambda: ModularMLP(5, 6), [0, 1])
    alone = both.copy([1])
    recipe = Recipe(optimizer=Muon, rate=1e-2, steps=3)
    train(both, data.x, data.y, recipe, private=(True, True))
    train(alone, data.x[1:], data.y[1:], recipe, private=(True, True))
    assert torch.allclose(both.vectors()[1], alone.vectors()[0], atol=1e-6)
    size = (both.parameters["u"][1] - Population.of(lambda: ModularMLP(5, 6), [1]).parameters["u"][0]).abs()
    assert 1e-3 < float(size.mean()) < 3e-2 * 3
