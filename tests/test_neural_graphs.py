"""Networks as graphs of their neurons, against the network itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("torch_geometric")

from microtome.errors import UsageError
from microtome.graphs.neural_graphs import ACTIVATIONS, neural_graph, permuted
from microtome.population import Population


def _run(graph, parameters, x):
    """Evaluate a graph of single weights neuron by neuron: what the network must answer."""
    weights, biases = graph.weights(parameters)
    functions = {"none": lambda v: v, "relu": torch.relu, "tanh": torch.tanh, "sin": torch.sin}
    value = {}
    into = {}
    for e, (a, b) in enumerate(graph.edge_index.T.tolist()):
        into.setdefault(b, []).append((a, e))
    for v in range(len(biases)):
        if v < len(x):
            value[v] = x[v]
            continue
        total = biases[v, 0] + sum(value[a] * weights[e, 0] for a, e in into[v])
        value[v] = functions[ACTIVATIONS[int(graph.activation[v])]](total)
    outputs = graph.place.argsort()[-(int(graph.place.max()) - len(x)) :]
    return torch.stack([value[int(v)] for v in outputs])


def _vector(module):
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2, bias=False)

    def forward(self, x):
        x = torch.tanh(self.first(x))
        return self.head(torch.relu(x + self.second(x)))


class Preactivated(nn.Module):
    """What is skipped is read by another branch as well, so its neurons may not be changed."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.first(x)
        return self.head(x + self.second(torch.relu(x)))


class Twice(nn.Module):
    """Neither side of the second sum is fresh."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.sin(torch.relu(self.first(x)) + torch.tanh(self.second(x))))


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)),
        Residual,
        Preactivated,
        Twice,
    ],
)
def test_the_graph_computes_what_the_network_computes(build):
    torch.manual_seed(0)
    module = build()
    x = torch.randn(3)
    graph = neural_graph(module, 3)
    assert torch.allclose(_run(graph, _vector(module), x), module(x).detach(), atol=1e-6)


def test_a_convolution_is_channels_joined_by_kernels():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 5)
    )
    graph = neural_graph(module, 2)
    weights, biases = graph.weights(_vector(module))
    assert len(biases) == 2 + 3 + 5 and weights.shape == (6 + 15, 9)
    for e, (a, b) in enumerate(graph.edge_index.T.tolist()):
        if b < 5:
            assert torch.equal(weights[e], module[0].weight[b - 2, a].flatten())
        else:
            assert torch.equal(weights[e, :4], module[4].weight[b - 5, 4 * (a - 2) : 4 * (a - 1)])
            assert not weights[e, 4:].any()
    assert graph.activation.tolist() == [0, 0, 1, 1, 1] + [0] * 5 and graph.place.tolist() == [
        1,
        2,
        0,
        0,
        0,
        3,
        4,
        5,
        6,
        7,
    ]
    grouped = neural_graph(nn.Sequential(nn.Conv2d(4, 6, 1, groups=2)), 4)
    assert set(map(tuple, grouped.edge_index.T.tolist())) == {
        (a, 4 + b) for a in range(4) for b in range(6) if a // 2 == b // 3
    }


def test_hidden_order_is_forgotten_and_a_population_is_one_gather():
    torch.manual_seed(0)

    def build():
        return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))

    module, other = build(), build()
    other.load_state_dict(permuted(module, torch.Generator().manual_seed(1)))
    x = torch.randn(6, 3)
    assert torch.allclose(module(x), other(x), atol=1e-6) and not torch.equal(
        module[0].weight, other[0].weight
    )
    graph = neural_graph(module, 3)
    population = Population([module, other])
    weights, biases = graph.weights(population.vectors())
    for i, member in enumerate((module, other)):
        one = graph.weights(_vector(member))
        assert torch.equal(weights[i], one[0]) and torch.equal(biases[i], one[1])
    # sums over hidden neurons that do not ask which is which agree
    for k in range(2):
        assert torch.allclose(weights[0].pow(k + 1).sum(), weights[1].pow(k + 1).sum(), atol=1e-5)


def test_what_has_no_graph_says_so():
    with pytest.raises(UsageError, match="MT512"):
        neural_graph(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), 3)
    with pytest.raises(UsageError, match="MT512"):
        neural_graph(nn.Sequential(nn.Linear(3, 4)), 2)
