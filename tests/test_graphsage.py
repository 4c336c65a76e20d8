"""Sampled edges, the loss by hand, and embeddings learnt without labels."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("torch_geometric")
from torch_geometric.nn import SAGEConv

from microtome.data.graph_generators import stochastic_blocks
from microtome.graphs.loader import CSR
from microtome.learn.graphsage import fit_by_walks, hearing_few, sampled_edges, walk_loss


def test_every_node_hears_at_most_so_many_each_once_and_all_alike():
    graph = stochastic_blocks(60, 2, degree=12, features=4, seed=0)
    csr, real = CSR(graph.edge_index, 60), {tuple(e) for e in graph.edge_index.T.tolist()}
    degree = torch.bincount(graph.edge_index[1], minlength=60)
    seen = torch.zeros(60, 60)
    for seed in range(400):
        edges = sampled_edges(csr, 3, seed)
        assert {tuple(e) for e in edges.T.tolist()} <= real
        assert torch.equal(torch.bincount(edges[1], minlength=60), degree.clamp(max=3))
        assert len(edges.unique(dim=1).T) == len(edges.T)
        seen[edges[0], edges[1]] += 1
    share = seen[graph.edge_index[0], graph.edge_index[1]] / 400
    wanted = (3 / degree.clamp(min=3))[graph.edge_index[1]]
    assert float((share - wanted).abs().max()) < 5 * math.sqrt(0.25 / 400)
    assert sampled_edges(csr, -1, 0).shape == graph.edge_index.shape


def test_the_loss_is_the_formula():
    z = torch.randn(4, 3)
    found = walk_loss(z, torch.tensor([[0, 1]]), torch.tensor([[2, 3]]), negatives=2.0)
    near = (z[0] @ z[1]).sigmoid().log()
    far = torch.stack([-(z[0] @ z[2]), -(z[0] @ z[3])]).sigmoid().log().mean()
    assert float(found) == pytest.approx(float(-near - 2 * far), rel=1e-5)


def test_hearing_all_is_the_whole_graph_and_hearing_few_is_drawn_anew():
    graph = stochastic_blocks(60, 2, degree=12, features=4, seed=0)
    torch.manual_seed(0)
    model = SAGEConv(4, 2)
    whole = torch.nn.functional.cross_entropy(
        model(graph.x, graph.edge_index)[graph.train_mask], graph.y[graph.train_mask]
    )
    assert float(hearing_few(graph, -1)(model, graph).detach()) == pytest.approx(
        float(whole.detach()), rel=1e-5
    )
    few = hearing_few(graph, 2)
    assert float(few(model, graph).detach()) != float(few(model, graph).detach())


def test_embeddings_learnt_from_walks_tell_blocks_apart():
    graph = stochastic_blocks(120, 2, degree=10, homophily=0.95, signal=0.3, features=8, seed=0)
    torch.manual_seed(0)

    def apart(model) -> float:
        z = torch.nn.functional.normalize(model(graph.x, graph.edge_index).detach(), dim=1)
        same = graph.block[:, None] == graph.block
        return float((z @ z.T)[same].mean() - (z @ z.T)[~same].mean())

    model = SAGEConv(8, 8)
    before = apart(model)
    assert apart(fit_by_walks(model, graph, epochs=60)) > before + 0.3
