"""Neural graphs compute what their networks compute, and what reads them does not see the order of hidden neurons."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from microtome.errors import UsageError
from microtome.graphs.neural_graphs import ACTIVATIONS, neural_graph, shuffles
from microtome.population import Population

pytest.importorskip("torch_geometric")
from torch_geometric.data import Batch

from microtome.nn.neural_graph_network import ModulatedConv, NeuralGraphNetwork


class Residual(nn.Module):
    """Every kind of sum: onto a layer, and after an activation."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.last = nn.Linear(4, 2, bias=False)

    def forward(self, x):
        x = torch.sin(self.first(x))
        x = F.relu(self.second(x) + x)
        x = torch.tanh(self.third(x)) + x
        return self.last(x)


def _mlp():
    return nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 4), nn.ELU(), nn.Linear(4, 2))


def _vector(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def _run(graph, vector, x):
    """Compute neuron by neuron what the graph says; x [inputs]."""
    edge, bias = graph.weights(vector)
    acts = {"none": lambda v: v, **{k: getattr(F, k) for k in ("relu", "gelu", "elu")},
            "tanh": torch.tanh, "sin": torch.sin}  # fmt: skip
    value = bias[:, 0].clone()
    value[: len(x)] = x
    for layer in range(1, int(graph.layer.max()) + 1):
        for v in (graph.layer == layer).nonzero()[:, 0].tolist():
            arrive = (graph.edge_index[1] == v).nonzero()[:, 0]
            total = bias[v, 0] + sum(edge[e, 0] * value[graph.edge_index[0, e]] for e in arrive.tolist())
            value[v] = acts[ACTIVATIONS[int(graph.activation[v])]](total)
    ends = (graph.place > len(x)).nonzero()[:, 0]
    return value[ends[graph.place[ends].argsort()]]


@pytest.mark.parametrize("build", [_mlp, Residual])
def test_the_graph_computes_what_the_network_computes(build):
    torch.manual_seed(0)
    module = build().double()
    graph = neural_graph(module, 3)
    for x in torch.randn(3, 3, dtype=torch.double):
        assert torch.allclose(_run(graph, _vector(module), x), module(x).detach())
    assert graph.place[:3].tolist() == [1, 2, 3]
    assert sorted(graph.place.unique().tolist()) == [0, 1, 2, 3, 4, 5]
    assert int(graph.skip.sum()) == (0 if build is _mlp else 12)


def test_channels_are_neurons_and_kernels_are_edges():
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 9, 5)
    )
    graph = neural_graph(module, 2)
    edge, bias = graph.weights(_vector(module))
    assert len(bias) == 2 + 4 + 5
    kernel, last = module[0].weight, module[4].weight.view(5, 4, 9)
    seen = set()
    for row, (a, b) in zip(edge, graph.edge_index.T.tolist(), strict=True):
        if b < 6:
            channel = b - 2
            assert a == channel // 2  # of its own group
            assert torch.equal(row, kernel[channel, 0].flatten())
        else:
            assert torch.equal(row, last[b - 6, a - 2])
        seen.add((a, b))
    assert len(seen) == 4 + 20
    assert torch.equal(bias[2:, 0], torch.cat([module[0].bias, module[4].bias]))


def test_a_population_becomes_graphs_at_once_and_gradients_go_through():
    population = Population.of(_mlp, seeds=range(4))
    graph = neural_graph(population.template, 3)
    edge, bias = graph.weights(population.vectors())
    assert edge.shape == (4, 43, 1)
    for i in range(4):
        one = graph.weights(_vector(population.member(i)))
        assert torch.equal(edge[i], one[0])
        assert torch.equal(bias[i], one[1])
    vector = population.vectors()[0].requires_grad_()
    sum(part.sum() for part in graph.weights(vector)).backward()
    assert torch.equal(vector.grad, torch.ones_like(vector))


def test_shuffled_neurons_give_the_same_function_and_the_same_answer():
    torch.manual_seed(0)
    module = _mlp().double()
    vector = _vector(module)
    orders = shuffles(module, 6, torch.Generator().manual_seed(1))
    assert torch.equal(orders.sort(1).values, torch.arange(len(vector)).expand(6, -1))
    mixed = vector.expand(6, -1).gather(1, orders)
    assert len(mixed.unique(dim=0)) > 1
    x = torch.randn(7, 3, dtype=torch.double)
    for row in mixed:
        other = _mlp().double()
        nn.utils.vector_to_parameters(row, other.parameters())
        assert torch.allclose(other(x), module(x))
    graph, reader = neural_graph(module, 3), NeuralGraphNetwork(4, 5, width=8).double().eval()
    answers = reader(Batch.from_data_list([graph.data(v) for v in (vector, *mixed)]))
    assert torch.allclose(answers, answers[:1].expand_as(answers), atol=1e-12)
    # Inputs and outputs keep their places: another order of them is another network.
    turned = vector.clone()
    turned[:15] = vector[:15].view(5, 3).flip(1).flatten()
    assert (reader(Batch.from_data_list([graph.data(turned)])) - answers[0]).abs().max() > 1e-6


def test_networks_of_any_shape_share_a_batch():
    torch.manual_seed(0)
    reader = NeuralGraphNetwork(2, 5, width=8).eval()
    modules = [_mlp(), Residual(), nn.Sequential(nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 2))]
    graphs = [neural_graph(m, 3).data(_vector(m)) for m in modules]
    whole = reader(Batch.from_data_list(graphs))
    for graph, answer in zip(graphs, whole, strict=True):
        assert torch.allclose(reader(Batch.from_data_list([graph]))[0], answer, atol=1e-5)


def test_a_modulated_message_neuron_by_neuron():
    torch.manual_seed(0)
    conv = ModulatedConv(4).double()
    x, edge = torch.randn(3, 4, dtype=torch.double), torch.randn(4, 4, dtype=torch.double)
    edge_index = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 1]])
    found, new = conv(x, edge_index, edge)
    for v, arriving in ((0, []), (1, [2, 3]), (2, [0, 1])):
        messages = []
        for e in arriving:
            scale, shift = conv.modulate(edge[e]).chunk(2)
            messages.append(scale * conv.other(x[edge_index[0, e]]) + shift)
        many = torch.stack(messages) if messages else torch.zeros(1, 4, dtype=torch.double)
        given = torch.cat([x[v], many.mean(0), many.max(0).values])
        assert torch.allclose(found[v], x[v] + conv.update_node(given))
    for e, (a, b) in enumerate(edge_index.T.tolist()):
        moved = conv.edge(edge[e]) + conv.ends(found[a])[:4] + conv.ends(found[b])[4:]
        assert torch.allclose(new[e], edge[e] + F.relu(moved))


def test_what_has_no_graph_is_refused():
    with pytest.raises(UsageError, match="'BatchNorm1d' has no graph of neurons"):
        neural_graph(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), 3)
    with pytest.raises(UsageError, match="5 inputs do not divide into 3"):
        neural_graph(nn.Sequential(nn.Linear(5, 4)), 3)

    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(UsageError, match="cannot be traced"):
        neural_graph(Branch(), 3)
    with pytest.raises(UsageError, match="no layer with weights"):
        neural_graph(nn.Identity(), 3)
