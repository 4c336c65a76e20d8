"""Losses and similarities by hand; a prompt that must find the one feature that tells classes apart."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from microtome.learn.graphprompt import alike, link_loss, neighbourhoods, pretrain, tune


def test_a_neighbourhood_is_the_node_and_its_neighbours():
    hidden = torch.randn(4, 3)
    edges = torch.tensor([[0, 1, 2], [3, 3, 0]])
    found = neighbourhoods(hidden, edges)
    assert torch.allclose(found[3], hidden[3] + hidden[0] + hidden[1])
    assert torch.allclose(found[1], hidden[1])


def test_the_loss_is_the_formula():
    s = torch.randn(3, 4)
    near, far = (F.cosine_similarity(s[0], s[i], dim=0) / 0.5 for i in (1, 2))
    wanted = -(near.exp() / (near.exp() + far.exp())).log()
    assert float(link_loss(s, torch.tensor([[0, 1, 2]]), 0.5)) == pytest.approx(float(wanted), rel=1e-5)


def test_classes_are_means_and_a_prompt_weighs_features():
    support = torch.randn(2, 6, 5)
    labels = torch.tensor([[0, 0, 1, 1, 2, 2], [2, 1, 0, 0, 1, 2]])
    queries, prompt = torch.randn(2, 4, 5), torch.rand(2, 5)
    found = alike(queries, support, labels, 3, prompt)
    for task in range(2):
        for q in range(4):
            for c in range(3):
                mean = (support[task][labels[task] == c] * prompt[task]).mean(0)
                wanted = F.cosine_similarity(queries[task, q] * prompt[task], mean, dim=0)
                assert float(found[task, q, c]) == pytest.approx(float(wanted), abs=1e-5)


def test_tuning_finds_the_feature_that_tells_and_tasks_do_not_touch_each_other():
    torch.manual_seed(0)
    support, labels = 3 * torch.randn(2, 20, 6), torch.arange(2).repeat(2, 10)
    for task, telling in ((0, 1), (1, 4)):
        support[task, :, telling] = torch.where(labels[task] > 0, 2.0, -2.0)
    prompt = tune(support, labels, 2, epochs=200)
    assert prompt.abs().argmax(1).tolist() == [1, 4]
    alone = tune(support[:1], labels[:1], 2, epochs=200)
    assert torch.allclose(alone[0], prompt[0], atol=1e-4)
    right = (alike(support, support, labels, 2, prompt).argmax(-1) == labels).float().mean()
    assert float(right) > float((alike(support, support, labels, 2).argmax(-1) == labels).float().mean())


def test_training_ahead_makes_neighbours_alike():
    pytest.importorskip("torch_geometric")
    from torch_geometric.nn import GCNConv

    from microtome.data.graph_generators import stochastic_blocks

    graph = stochastic_blocks(100, 2, degree=8, homophily=0.9, signal=0.5, features=8, seed=0)

    draw = torch.Generator().manual_seed(9)
    fresh = torch.cat([graph.edge_index.T, torch.randint(100, (graph.num_edges, 1), generator=draw)], 1)

    def lost(model) -> float:
        with torch.no_grad():
            return float(link_loss(neighbourhoods(model(graph.x, graph.edge_index), graph.edge_index), fresh))

    torch.manual_seed(0)
    model = GCNConv(8, 8)
    before = lost(model)
    assert lost(pretrain(model, graph, epochs=80)) < 0.9 * before
