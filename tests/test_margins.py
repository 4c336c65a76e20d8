"""Frequencies, margins and groups against networks and tables made by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from microtome.data.groups import isotypic_projectors, permutation_table
from microtome.data.modular import modular_pairs, modular_table
from microtome.errors import UsageError
from microtome.nn.modular_mlp import ModularMLP
from microtome.population import Population, Recipe, train
from microtome.population.fourier import fourier_basis, frequency_power, phase, purity, sum_coefficients
from microtome.population.margin import modular_margin, normalised_margin, power_penalty


def by_hand(p):
    """Every frequency, and five by five phases whose sum the answer has."""
    phases = [2 * math.pi * i / 5 for i in range(5)]
    units = list(itertools.product(range(1, (p + 1) // 2), phases, phases))
    k = 2 * math.pi * torch.tensor([u[0] for u in units]).double() / p
    one, two = (torch.tensor([u[i] for u in units], dtype=torch.float64) for i in (1, 2))
    place = torch.arange(p).double()[:, None]
    net = ModularMLP(p, len(units)).double()
    state = {"u": (k * place + one).cos(), "v": (k * place + two).cos(), "w": (k * place + one + two).cos()}
    net.load_state_dict(state)
    return net, state, k, one


@pytest.mark.parametrize("p", [5, 7, 13])
def test_the_network_by_hand_has_the_largest_margin(p):
    net, state, _, _ = by_hand(p)
    found = normalised_margin(net(modular_pairs(p)), modular_table(p), state)
    assert float(found.detach()) == pytest.approx(modular_margin(p), rel=1e-9)


def test_no_other_network_has_more():
    torch.manual_seed(0)
    net, state, _, _ = by_hand(7)
    for _ in range(20):
        other = {k: v + 0.05 * torch.randn_like(v) for k, v in state.items()}
        net.load_state_dict(other)
        assert normalised_margin(net(modular_pairs(7)), modular_table(7), other) < modular_margin(7)


def test_frequencies_and_phases_are_read_off():
    _, state, k, one = by_hand(13)
    share, which = purity(state["u"].T)
    assert torch.allclose(share, torch.ones_like(share))
    assert torch.equal(which, (k * 13 / (2 * math.pi)).round().long())
    assert torch.allclose((phase(state["u"].T, which) - one).cos(), torch.ones_like(one))


def test_basis_is_orthonormal_and_power_is_the_length():
    basis = fourier_basis(11)
    assert torch.allclose(basis @ basis.T, torch.eye(11, dtype=torch.float64), atol=1e-12)
    x = torch.randn(3, 11)
    assert torch.allclose(frequency_power(x).sum(-1), x.double().square().sum(-1))


def test_logits_of_a_rotation_are_taken_apart():
    p, pairs = 7, modular_pairs(7)
    apart = (pairs.sum(1)[:, None] - torch.arange(p)).double()
    logits = 3 * (2 * math.pi * 2 * apart / p).cos() + 0.5
    found = sum_coefficients(logits[None])[0]
    assert found.tolist() == pytest.approx([0.5, 0, 3, 0], abs=1e-9)


def test_a_penalty_is_part_of_the_gradient():
    """One step of descent with it, against autograd."""
    x, y = modular_pairs(5), modular_table(5)
    population = Population.of(lambda: ModularMLP(5, 4), [0, 1])
    net = population.member(1)
    penalty = power_penalty(0.1, 3)
    (torch.nn.functional.cross_entropy(net(x), y) + penalty(dict(net.named_parameters()))).backward()
    train(population, x, y, Recipe(rate=0.1, steps=1, penalty=penalty))
    for name, p in net.named_parameters():
        assert torch.allclose(population.parameters[name][1], p - 0.1 * p.grad, atol=1e-6)


def test_permutations_multiply():
    table = permutation_table(3)
    assert torch.equal(table[0], torch.arange(6)) and all(len(row.unique()) == 6 for row in table)
    a, b, c = 1, 3, 5
    assert table[table[a, b], c] == table[a, table[b, c]]
    with pytest.raises(UsageError, match="MT485"):
        permutation_table(6)


def test_parts_of_functions_on_a_group():
    """Irreducible representations of four things have dimensions 1, 1, 2, 3, 3; parts do not move under products."""
    table = permutation_table(4)
    found = isotypic_projectors(table)
    assert sorted(round(float(p.trace())) for p in found) == [1, 1, 4, 9, 9]
    assert torch.allclose(found.sum(0), torch.eye(24, dtype=torch.float64), atol=1e-9)
    f = torch.randn(24, dtype=torch.float64)
    moved = f[table[7]]
    for p in found:
        assert torch.allclose((p @ f)[table[7]], p @ moved, atol=1e-9)
