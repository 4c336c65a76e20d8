"""Layers of graph networks against direct loops."""

from __future__ import annotations

import pytest
import torch

from microtome.data import graph_generators as make

pytest.importorskip("torch_geometric")


def _graph():
    graph = make.stochastic_blocks(24, 3, degree=4, features=5, seed=1)
    graph.x = graph.x.double()
    return graph


def test_gated_propagation_is_the_sum_over_powers_of_the_adjacency():
    from microtome.nn.dagnn import DAGNN, GatedPropagation

    graph = _graph()
    torch.manual_seed(0)
    layer = GatedPropagation(5, 3).double()
    loops = torch.zeros(24, 24, dtype=torch.double)
    loops[graph.edge_index[1], graph.edge_index[0]] = 1
    loops += torch.eye(24)
    scale = loops.sum(1).rsqrt()
    step = scale[:, None] * loops * scale
    expected = torch.zeros_like(graph.x)
    h = graph.x
    for _ in range(4):
        for v in range(24):
            expected[v] += torch.sigmoid(h[v] @ layer.gate.weight[0]) * h[v]
        h = step @ h
    assert torch.allclose(layer(graph.x, graph.edge_index), expected)
    assert DAGNN(5, 8, 3).double()(graph.x, graph.edge_index).shape == (24, 3)


def test_cooperation_passes_messages_along_agreed_edges_alone():
    from microtome.nn.cooperative import CooperativeConv

    graph = _graph()
    torch.manual_seed(2)
    layer = CooperativeConv(5, 4).double().eval()
    for weight in (layer.see_own.weight, layer.see_other.weight, layer.decide.weight):
        torch.nn.init.normal_(weight, std=2.0)
    actions = layer.actions(graph.x, graph.edge_index).argmax(1)
    assert len(actions.unique()) > 2
    expected = layer.own(graph.x)
    for v in range(24):
        heard = [
            graph.x[u]
            for u, w in graph.edge_index.T.tolist()
            if w == v and int(actions[u]) in (0, 2) and int(actions[v]) in (0, 1)
        ]
        if heard:
            expected[v] = expected[v] + layer.other(torch.stack(heard).mean(0))
    assert torch.allclose(layer(graph.x, graph.edge_index), expected)
    layer.train()
    layer(graph.x, graph.edge_index).sum().backward()
    assert float(layer.decide.weight.grad.abs().sum()) > 0


def test_a_network_of_colours_counts_them():
    from torch_geometric.data import Batch

    from microtome.nn.weisfeiler_leman import ColourNetwork

    graphs = make.small_graphs(5)
    batch = Batch.from_data_list(graphs)
    torch.manual_seed(0)
    network = ColourNetwork(8, 2, rounds=2).fit_colours(batch.x, batch.edge_index)
    colours = network.colours(batch.x, batch.edge_index)
    row = {int(c): i for i, c in enumerate(network.known)}
    for g in (3, 17, 40):
        inside = (batch.batch == g).nonzero()[:, 0].tolist()
        total = sum(network.table[row[int(c)]] for r in range(3) for c in colours[r, inside])
        expected = network.head(network.norm(total / len(inside) ** 0.5))
        assert torch.allclose(network(batch.x, batch.edge_index, batch.batch)[g], expected, atol=1e-5)
    unseen = make.circular_skip_link(2, 11)
    unseen.x = 7 * torch.ones(11, 1)
    given = network(unseen.x, unseen.edge_index, torch.zeros(11, dtype=torch.long))
    assert torch.allclose(given[0], network.head(network.norm(torch.zeros(1, 8)))[0])
