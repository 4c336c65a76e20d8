"""Against a loop over pairs, and gradients whose directions are known."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from microtome.population import Population
from microtome.population import gradient_directions as g


def test_variance_and_error_against_a_loop():
    torch.manual_seed(0)
    found, full = torch.randn(5, 3, 7), torch.randn(3, 7)
    for i in range(3):
        pairs = [F.cosine_similarity(a, b, dim=0) for a, b in itertools.combinations(found[:, i], 2)]
        assert g.direction_variance(found)[i].item() == pytest.approx(
            (1 - torch.stack(pairs).mean().item()) / 2
        )
        near = F.cosine_similarity(found[:, i], full[i], dim=1).mean().item()
        assert g.direction_error(found, full)[i].item() == pytest.approx((1 - near) / 2)
    same = full.expand(4, 3, 7) * torch.tensor([1.0, 2, 3, 4])[:, None, None]
    assert torch.allclose(g.direction_variance(same), torch.zeros(3).double(), atol=1e-6)
    opposite = torch.stack([full[0], -full[0]])[:, None]
    assert g.direction_variance(opposite).item() == pytest.approx(1)


def test_gradients_are_those_of_each_network():
    torch.manual_seed(0)
    x, y = torch.randn(12, 4), torch.randint(0, 3, (12,))
    population = Population.of(lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)), [0, 1])
    rows = list(torch.arange(12).split(6))
    population.template.eval()
    found = g.batch_gradients(population, x, y, rows)
    for i, b in itertools.product(range(2), range(2)):
        model = population.member(i).eval()
        F.cross_entropy(model(x[rows[b]]), y[rows[b]]).backward()
        own = torch.cat([p.grad.flatten() for p in model.parameters()])
        assert torch.allclose(found[b, i], own, atol=1e-6)
    population.template.train()
    full = g.full_gradient(population, x, y)
    assert population.template.training and torch.allclose(full, found.mean(0), atol=1e-6)
    noisy = g.batch_gradients(population, x, y, [torch.arange(12)] * 2)
    assert not torch.allclose(noisy[0], noisy[1])
