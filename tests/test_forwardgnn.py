"""Learning by layers against direct sums, and that no gradient passes from one layer to another."""

from __future__ import annotations

import pytest
import torch

from microtome.data.graph_generators import stochastic_blocks
from microtome.errors import UsageError

pytest.importorskip("torch_geometric")
from torch_geometric.nn import GCNConv, SAGEConv

from microtome.learn.forwardgnn import ForwardNetwork, fit_forward

RULES = ("labels", "virtual", "single", "input", "loss")


def _graph():
    return stochastic_blocks(30, 3, degree=4, features=5, shares=(0.5, 0.25), seed=1)


def _model(rule, widths=(5, 6, 6, 6), **more):
    torch.manual_seed(0)
    model = ForwardNetwork(GCNConv, list(widths), 3, rule=rule, **more)
    model.attach(_graph())
    return model


def _unit(h):
    return h / h.norm(dim=1, keepdim=True).clamp(min=1e-8)


def _known(graph):
    return [v for v in range(30) if graph.train_mask[v]]


def _with_classes(model, graph, label_of):
    pairs = [(v, 30 + int(label_of[v])) for v in _known(graph)]
    more = torch.tensor([*pairs, *((b, a) for a, b in pairs)]).T
    return torch.cat([graph.x, model.virtual]), torch.cat([graph.edge_index, more], 1)


@pytest.mark.parametrize("rule", RULES)
def test_the_loss_of_a_layer_moves_that_layer_alone(rule):
    graph, model = _graph(), _model(rule)
    seen = []
    for i, loss in model.losses(graph):
        parts = {j: list(conv.parameters()) for j, conv in enumerate(model.convs)}
        own = torch.autograd.grad(loss, parts[i], retain_graph=True)
        assert sum(float(g.abs().sum()) for g in own) > 0
        others = [p for j, ps in parts.items() if j != i for p in ps]
        assert all(g is None for g in torch.autograd.grad(loss, others, allow_unused=True))
        seen.append(i)
    assert sorted(seen) == [0, 1, 2]


def test_single_forward_is_the_cross_entropy_of_products_with_the_nodes_of_the_classes():
    graph, model = _graph(), _model("single", temperature=0.5)
    h, edges = _with_classes(model, graph, graph.y)
    total = torch.zeros(30, 3)
    for i, conv in enumerate(model.convs):
        h = torch.relu(conv(_unit(h), edges))
        losses = []
        for v in range(30):
            p = torch.softmax(torch.stack([h[v] @ h[30 + c] / 0.5 for c in range(3)]), 0)
            total[v] += p.detach()
            if graph.train_mask[v]:
                losses.append(-p[graph.y[v]].log().detach())
        assert float(model.layer_loss(i, graph).detach()) == pytest.approx(
            float(torch.stack(losses).mean()), rel=1e-5
        )
    assert torch.allclose(model(graph.x, graph.edge_index), total, atol=1e-5)


@pytest.mark.parametrize("rule", ["labels", "virtual"])
def test_goodness_is_told_from_that_of_wrong_labels(rule):
    graph, model = _graph(), _model(rule, theta=0.1)
    known = _known(graph)
    for v in known:
        assert sorted([int(graph.y[v]), *model.wrong[:, v].tolist()]) == [0, 1, 2]

    def start(label_of):
        if rule == "virtual":
            return _with_classes(model, graph, label_of)
        given = torch.full((30, 3), 1 / 3)
        for v in known:
            given[v] = torch.eye(3)[int(label_of[v])]
        return torch.cat([graph.x, given], 1), graph.edge_index

    graphs = [start(graph.y), *(start(w) for w in model.wrong)]
    for i, conv in enumerate(model.convs):
        inputs = [graphs[0][0] if rule == "virtual" else x for x, _ in graphs]
        outputs = [torch.relu(conv(_unit(x), e)) for x, (_, e) in zip(inputs, graphs, strict=True)]
        means = []
        for sign, h in zip((1, -1, -1), outputs, strict=True):
            terms = [-torch.sigmoid(sign * ((h[v] ** 2).sum() - 0.1)).log() for v in known]
            means.append(torch.stack(terms).mean())
        assert float(model.layer_loss(i, graph).detach()) == pytest.approx(
            float((means[0] + (means[1] + means[2]) / 2).detach()), rel=1e-5
        )
        graphs = [(h.detach(), e) for h, (_, e) in zip(outputs, graphs, strict=True)]


def test_the_loss_from_above_is_that_of_the_mean_with_what_higher_layers_said_before():
    graph, model = _graph(), _model("loss")
    x, edges = _with_classes(model, graph, graph.y)
    states = [x]
    for conv in model.convs:
        states.append(_unit(torch.relu(conv(_unit(states[-1]), edges))).detach())
    for step in range(2):
        expected = []
        following = [x]
        for i, conv in enumerate(model.convs):
            h = torch.relu(conv(_unit(states[i]), edges))
            mixed = sum([h, *states[i + 2 :]]) / (3 - i)
            expected.append(float(model.class_loss(mixed).detach()))
            following.append(_unit(h).detach())
        found = []
        for (_, loss), conv in zip(model.losses(graph), model.convs, strict=True):
            found.append(float(loss.detach()))
            with torch.no_grad():
                conv.bias += 0.01 * step
        assert found == pytest.approx(expected, rel=1e-5)
        states = following


def test_the_input_from_above_is_what_the_higher_layer_said_last():
    graph, model = _graph(), _model("input")
    x, edges = _with_classes(model, graph, graph.y)
    top = torch.full((33, 3), 1 / 3)
    for v in _known(graph):
        top[v] = torch.eye(3)[graph.y[v]]
    top[30:] = torch.eye(3)
    states = [x]
    for conv, width in zip(model.convs, (6, 6, 3), strict=True):
        states.append(torch.relu(conv(torch.cat([_unit(states[-1]), torch.zeros(33, width)], 1), edges)))
    states.append(top)
    order, expected = (0, 2, 1), {}
    for i in order:  # the odd layer hears what the even ones have just said
        states[i + 1] = torch.relu(
            model.convs[i](torch.cat([_unit(states[i]), _unit(states[i + 2])], 1), edges)
        )
        expected[i] = float(model.class_loss(states[i + 1]).detach())
    found = {i: float(loss.detach()) for i, loss in model.losses(graph)}
    assert tuple(found) == order
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_learns_an_easy_graph(rule):
    graph = stochastic_blocks(150, 3, degree=8, homophily=0.95, signal=3.0, features=6, seed=0)
    torch.manual_seed(0)
    model = ForwardNetwork(SAGEConv, [6, 16, 16], 3, rule=rule)
    assert fit_forward(model, graph, epochs=40)[0] > 0.8


def test_what_is_kept_for_gradients_does_not_grow_with_depth():
    from microtome.studies.learn.forwardgnn import saved_bytes

    graph = _graph()
    for rule in ("single", "input", "loss"):
        kept = []
        for depth in (2, 6):
            model = _model(rule, (5, *[6] * depth))
            kept.append(saved_bytes(model.losses(graph), [graph.x, graph.edge_index, *model.parameters()]))
        assert kept[1] < 1.2 * kept[0]


def test_what_cannot_be_learnt_is_refused():
    with pytest.raises(UsageError, match="no rule is called 'x'"):
        ForwardNetwork(GCNConv, [5, 6], 3, rule="x")
    with pytest.raises(UsageError, match="means over layers"):
        ForwardNetwork(GCNConv, [5, 6, 7], 3, rule="loss")
    with pytest.raises(UsageError, match="labels of 0 nodes are attached"):
        ForwardNetwork(GCNConv, [5, 6], 3)(torch.zeros(4, 5), torch.zeros(2, 0, dtype=torch.long))
