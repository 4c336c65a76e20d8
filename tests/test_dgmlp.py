"""Propagation against dense powers, its limit against many hops, weights against the formula by hand."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("torch_geometric")
from torch_geometric.data import Data

from microtome.nn.dgmlp import (
    DGMLP,
    AdaptivePropagation,
    ResidualMLP,
    propagated,
    smoothing_levels,
    stationary,
)


@pytest.fixture
def graph():
    """A triangle with a tail, an edge apart, and a lone node."""
    pairs = torch.tensor([[0, 1], [1, 2], [2, 0], [2, 3], [4, 5]]).T
    torch.manual_seed(0)
    return Data(x=torch.randn(7, 3).double(), edge_index=torch.cat([pairs, pairs.flip(0)], 1))


def dense(graph) -> torch.Tensor:
    matrix = torch.eye(7, dtype=torch.float64)
    matrix[graph.edge_index[1], graph.edge_index[0]] = 1
    root = matrix.sum(1).rsqrt()
    return root[:, None] * matrix * root


def test_hops_are_powers_of_the_normalised_adjacency(graph):
    a = dense(graph)
    found = propagated(graph.x, graph.edge_index, 3)
    for k in range(4):
        assert torch.allclose(found[k], torch.linalg.matrix_power(a, k) @ graph.x, atol=1e-12)


def test_teleport_keeps_a_share_of_the_features(graph):
    a, t = dense(graph), 0.1
    found = propagated(graph.x, graph.edge_index, 400, teleport=t)[-1]
    wanted = t * torch.linalg.inv(torch.eye(7, dtype=torch.float64) - (1 - t) * a) @ graph.x
    assert torch.allclose(found, wanted, atol=1e-12)


def test_the_limit_is_that_of_many_hops_in_every_part(graph):
    found = propagated(graph.x, graph.edge_index, 600)[-1]
    assert torch.allclose(stationary(graph.x, graph.edge_index), found, atol=1e-9)


def test_weights_follow_the_formula_and_prefer_early_hops_of_smooth_nodes(graph):
    weights, hops = AdaptivePropagation(5, 0.5).weights(graph.x, graph.edge_index)
    limit = stationary(graph.x, graph.edge_index)
    v, levels = 3, []
    for k in range(6):
        a, b, c = hops[k, v], hops[0, v], limit[v]
        levels.append((a @ b / (a.norm() * b.norm())) * (1 - a @ c / (a.norm() * c.norm())))
    wanted = (torch.stack(levels) / 0.5).softmax(0)
    assert torch.allclose(weights[:, v], wanted, atol=1e-12)
    assert torch.allclose(weights.sum(0), torch.ones(7, dtype=torch.float64))
    # A node without neighbours is its own limit at once: no hop is better than another.
    assert torch.allclose(weights[:, 6], torch.full((6,), 1 / 6, dtype=torch.float64), atol=1e-6)
    assert (
        smoothing_levels(hops, limit)[-1, :4].abs().max() < smoothing_levels(hops, limit)[0, :4].abs().max()
    )


def test_the_transform_and_the_network_agree(graph):
    torch.manual_seed(1)
    model = DGMLP(3, 8, 2, hops=4, depth=3).double().eval()
    own = AdaptivePropagation(4)(graph.clone())
    assert torch.allclose(model(graph.x, graph.edge_index), model.mlp(own.x), atol=1e-12)


def test_residuals_carry_a_signal_through_maps_that_are_zero():
    x = torch.randn(5, 3)
    for residual in (True, False):
        model = ResidualMLP(3, 4, 2, 6, residual=residual)
        with torch.no_grad():
            for layer in model.maps[1:-1]:
                layer.weight.zero_()
                layer.bias.zero_()
        alive = bool((model(x) - model(x[:1])).abs().max() > 1e-6)
        assert alive is residual
