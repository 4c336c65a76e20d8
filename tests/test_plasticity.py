"""A probe leaves its network alone; a network that cannot learn scores what it said before."""

import pytest
import torch
from torch import nn

from microtome.learn import plasticity as p
from microtome.population import Population, Recipe, train

X = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))


def net():
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))


def test_labels_are_each_members_own_and_repeatable():
    one, two = (p.random_labels(4, 50, 3, t) for t in (0, 1))
    assert one.shape == (4, 50) and set(one.unique().tolist()) == {0, 1, 2}
    assert torch.equal(one, p.random_labels(4, 50, 3, 0)) and not torch.equal(one, two)
    assert not torch.equal(one[0], one[1]) and not torch.equal(one, p.random_labels(4, 50, 3, 0, seed=1))


def test_a_dead_network_has_lost_plasticity():
    population = Population.of(net, [0, 1])
    population.parameters["0.bias"][1] = -100.0  # all units of member 1 are dead
    population.parameters["0.weight"][1].zero_()
    before = population.vectors().clone()
    targets = p.random_labels(2, 24, 3, 0)
    found = p.probe(population, X, targets, Recipe(optimizer="adam", rate=0.03, steps=300))
    assert torch.equal(population.vectors(), before)
    shares = torch.bincount(targets[1], minlength=3) / 24
    assert found[0] < 0.1
    assert found[1].item() == pytest.approx(-(shares * shares.log()).sum().item(), abs=0.01)  # biases alone


def test_a_stream_of_one_target_is_plain_training():
    whole, parts = (Population.of(net, [0, 1]) for _ in range(2))
    targets = p.random_labels(2, 24, 3, 0)
    recipe = {"optimizer": "adam", "rate": 0.01, "batch_size": 8}
    train(whole, X, targets, Recipe(**recipe, steps=12), private=(False, True))
    seen = []
    losses = p.stream(
        parts, X, lambda t: targets, Recipe(**recipe, steps=4), 3, watch=lambda who, task: seen.append(task)
    )
    assert torch.allclose(whole.vectors(), parts.vectors(), atol=1e-6)
    assert losses.shape == (3, 2) and seen == [0, 1, 2]
    assert torch.allclose(losses[-1], p.final_loss(whole, X, targets, Recipe(steps=1).loss), atol=1e-6)
