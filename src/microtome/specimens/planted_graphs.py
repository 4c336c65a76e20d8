"""Graphs and graph networks whose answers are sums: bipartite labels, rings with known eigenvectors, planted twins."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import torch
from torch import Tensor, nn

from microtome.specimen import Builder, Specimen, Truth, specimen
from microtome.subject import Subject


def _specimen(build: Builder) -> Builder:
    """Marked only where PyTorch Geometric is installed."""
    return specimen(build) if importlib.util.find_spec("torch_geometric") is not None else build


class _OwnFeatures(nn.Module):
    """Answers with the node's own features."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """[nodes, k] -> [nodes, k]."""
        return x * 1.0


class _NeighbourSum(nn.Module):
    """Answers with the sum of the neighbours' features."""

    def __init__(self) -> None:
        super().__init__()
        from torch_geometric.nn import SimpleConv

        self.conv = SimpleConv(aggr="sum")

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """[nodes, k] -> [nodes, k]."""
        return self.conv(x, edge_index)


class _Averaging(nn.Module):
    """Two steps of the normalised adjacency with loops, and nothing else."""

    def __init__(self, width: int) -> None:
        super().__init__()
        from torch_geometric.nn import SGConv

        self.conv1, self.conv2 = (SGConv(width, width, bias=False) for _ in range(2))
        with torch.no_grad():
            for conv in (self.conv1, self.conv2):
                conv.lin.weight.copy_(torch.eye(width))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """[nodes, d] -> [nodes, d]."""
        return self.conv2(self.conv1(x, edge_index), edge_index)


class _Counting(nn.Module):
    """Two rounds of degree-weighted sums with fixed generic numbers, and the sum of squares over the nodes."""

    def __init__(self) -> None:
        super().__init__()
        from torch_geometric.nn import SimpleConv

        self.conv = SimpleConv(aggr="sum")

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        """[nodes, 1] -> [graphs, 2]."""
        from torch_geometric.nn import global_add_pool

        for _ in range(2):
            x = (1.3 * x + 0.7 * self.conv(x, edge_index)).square() / 10
        pooled = global_add_pool(x, batch)
        return torch.cat([pooled, pooled.cos()], 1)


def _data(pairs: Tensor, **more: Any) -> Any:
    from torch_geometric.data import Data
    from torch_geometric.utils import to_undirected

    return Data(edge_index=to_undirected(pairs, num_nodes=more.get("num_nodes")), **more)


@_specimen
def planted_homophily() -> Specimen:
    """A complete bipartite graph of two classes: no edge within a class, and a neighbour tells everything."""
    a, b = torch.meshgrid(torch.arange(6), torch.arange(6, 12), indexing="ij")
    y = torch.arange(12) // 6
    x = torch.nn.functional.one_hot(y, 2).double()
    graph = _data(torch.stack([a.flatten(), b.flatten()]), x=x, y=y, num_nodes=12)
    name, why = "graphs/homophily", "every edge of a complete bipartite graph joins its two classes"
    values = {
        "edge homophily": 0.0, "node homophily": 0.0, "class homophily": 0.0, "adjusted homophily": -1.0,
        "label informativeness": 1.0, "distance of profiles": 1.0, "similarity of profiles": 0.0,
    }  # fmt: skip
    truths = tuple(Truth(name, key, value, 1e-12, why) for key, value in values.items())
    return Specimen("planted homophily", Subject(_OwnFeatures(), graph, name="planted homophily"), truths)


@_specimen
def planted_indifference() -> Specimen:
    """A ring labelled A A B B ...: half of the edges join a class, and a neighbour tells nothing."""
    i = torch.arange(40)
    y = i // 2 % 2
    x = torch.nn.functional.one_hot(y, 2).double()
    graph = _data(torch.stack([i, (i + 1) % 40]), x=x, y=y, num_nodes=40)
    name, why = "graphs/homophily", "each node has one neighbour of either class"
    values = {
        "edge homophily": 0.5, "node homophily": 0.5, "class homophily": 0.0, "adjusted homophily": 0.0,
        "label informativeness": 0.0, "distance of profiles": 0.0, "similarity of profiles": 1.0,
    }  # fmt: skip
    truths = tuple(Truth(name, key, value, 1e-12, why) for key, value in values.items())
    return Specimen(
        "planted indifference", Subject(_OwnFeatures(), graph, name="planted indifference"), truths
    )


@_specimen
def planted_twins() -> Specimen:
    """Three of ten nodes of a dense block model are copies of others, with their neighbours and label."""
    from microtome.data.graph_generators import plant_duplicates, stochastic_blocks

    graph = plant_duplicates(stochastic_blocks(200, 2, degree=24, features=2, seed=1), 0.3, seed=2)
    family = torch.where(graph.twin_of >= 0, graph.twin_of, torch.arange(200))
    size = torch.bincount(family, minlength=200)
    trained = torch.bincount(family[graph.train_mask], minlength=200)
    test = family[graph.test_mask]
    name, why = "graphs/duplicate_audit", "counted from the list of copies"
    truths = (
        Truth(
            name, "examples with a twin in training", float((trained[test] > 0).double().mean()), 1e-12, why
        ),
        Truth(name, "examples with a twin", float((size[test] > 1).double().mean()), 1e-12, why),
        Truth(name, "nodes to remove", 60.0, 1e-9, "as many as were copied"),
    )
    return Specimen("planted twins", Subject(_OwnFeatures(), graph, name="planted twins"), truths)


@_specimen
def planted_ring() -> Specimen:
    """Averaging twice on a ring whose features are eigenvectors: energy and Jacobian are known in closed form."""
    n, waves, sizes = 24, torch.tensor([2.0, 7.0]).double(), torch.tensor([1.0, 3.0]).double()
    i = torch.arange(n)
    angle = 2 * math.pi * waves / n
    x = sizes * torch.cos(angle * i[:, None].double())
    graph = _data(torch.stack([i, (i + 1) % n]), x=x, y=i % 2, num_nodes=n)
    subject = Subject(_Averaging(2).double(), graph, name="planted ring")
    value = (1 + 2 * torch.cos(angle)) / 3  # of the adjacency with loops, each node having three neighbours
    power = sizes.square()
    last = power * value**4
    smooth, squash = "graphs/oversmoothing", "graphs/oversquashing"
    wave, jacobian = "columns are eigenvectors", "rows of ((I + A) / 3)^2 are 3, 2, 1 ninths by distance"
    first = float((power * (1 - value)).sum() / power.sum())
    truths = (
        Truth(smooth, "Dirichlet energy, inputs", first, 1e-9, wave),
        Truth(
            smooth, "Dirichlet energy, last layer", float((last * (1 - value)).sum() / last.sum()), 1e-9, wave
        ),
        Truth(squash, "share from beyond one hop", 2 / 19, 1e-9, jacobian),
        Truth(squash, "norm kept a hop", 3**-0.5, 1e-9, jacobian),
        Truth(squash, "farthest hop reached", 2.0, 0.0, "two convolutions"),
    )
    return Specimen("planted ring", subject, truths)


@_specimen
def planted_colours() -> Specimen:
    """A hexagon and two triangles that colour refinement cannot tell apart, a path and a star that it can."""
    from torch_geometric.data import Batch

    pairs = (
        [(j, (j + 1) % 6) for j in range(6)],
        [(0, 1), (1, 2), (2, 0), (3, 4), (4, 5), (5, 3)],
        [(0, 1), (1, 2), (2, 3)],
        [(0, 1), (0, 2), (0, 3)],
    )
    sizes = (6, 6, 4, 4)
    graphs = [
        _data(torch.tensor(p).T, x=torch.ones(s, 1).double(), y=torch.tensor([label]), num_nodes=s)
        for p, s, label in zip(pairs, sizes, (0, 1, 0, 1), strict=True)
    ]
    subject = Subject(_Counting(), [Batch.from_data_list(graphs)], name="planted colours")
    name = "graphs/weisfeiler_leman"
    # The module's one convolution is called twice: say how many rounds that is.
    options = {"rounds_of_refinement": 2}
    truths = (
        Truth(name, "WL classes", 3.0, 0.0, "the hexagon and the triangles are both 2-regular", options),
        Truth(name, "groups of outputs", 3.0, 0.0, "sums of squares tell the three apart", options),
        Truth(name, "ceiling", 0.75, 1e-12, "the pair of one colour has two labels", options),
        Truth(name, "WL classes split", 0.0, 0.0, "message passing is bound by 1-WL", options),
    )
    return Specimen("planted colours", subject, truths)


@_specimen
def planted_pairs() -> Specimen:
    """Nodes in pairs, each labelled by its partner's feature: a lost edge or a flipped feature costs what it says."""
    n = 4000
    i = torch.arange(0, n, 2)
    # The four combinations of labels in a pair, equally often: half of the labels are 1.
    pattern = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])[torch.arange(n // 2) % 4].flatten()
    x = torch.nn.functional.one_hot(pattern, 2).double()
    y = pattern.reshape(-1, 2).flip(1).flatten()
    graph = _data(torch.stack([i, i + 1]), x=x, y=y, num_nodes=n)
    subject = Subject(_NeighbourSum(), graph, name="planted pairs")
    name = "graphs/edge_robustness"
    # An edge lost costs its pair as many answers as it has labels 1 (mean 1, mean square 3/2); four standard errors.
    lost = 4 * math.sqrt(n / 2 * (0.1 * 1.5 - 0.01)) / n
    truths = (
        Truth(name, "lost at 10% edges lost", 0.05, lost, "without an edge the answer is 0, wrong for a half"),
        Truth(name, "lost with no edges", 0.5, 1e-12, "half of the labels are 1"),
        Truth(name, "lost at 10% features flipped", 0.1, 4 * math.sqrt(0.09 / n),
              "of class 0 wrong if both numbers turn, s^2, of class 1 unless none does, 2s - s^2: s on average"),
    )  # fmt: skip
    return Specimen("planted pairs", subject, truths)


@_specimen
def planted_messages() -> Specimen:
    """Nodes with four neighbours of which one speaks: its edge is the answer, with a known share and probability."""
    n = 24
    asked = torch.arange(n)
    source, target = torch.arange(n, 5 * n), asked.repeat_interleave(4)
    speaks = torch.arange(4 * n) % 4 == target % 4
    y = torch.cat([asked % 2, torch.zeros(4 * n, dtype=torch.long)])
    x = torch.zeros(5 * n, 2).double()
    x[source[speaks], y[target[speaks]]] = math.log(3)
    graph = _data(torch.stack([source, target]), x=x, y=y, num_nodes=5 * n, test_mask=torch.arange(5 * n) < n)
    subject = Subject(_NeighbourSum(), graph, name="planted messages")
    name, why = (
        "graphs/edge_attribution",
        "the one that speaks is first: logits log 3 and 0 with it, 0 and 0 without",
    )
    chance = "the first 1, 1 and 2 of 4 edges at random hold it with 1/4, 1/4, 1/2: fidelity (2 p - 1) / 4, mean -1/12"
    # Four standard errors of the sampled examples; a single order's fidelity is within -1/4 and 1/4.
    spread = 4 * 0.25 / math.sqrt(12)
    truths = (
        *(Truth(name, f"fidelity, {m}", 0.25, 1e-9, why) for m in ("GOAt", "gradient x input", "occlusion")),
        Truth(name, "logit that GOAt explains", 1.0, 1e-9, "a sum of features is a sum of products"),
        Truth(name, "gain over random", 0.25 + 1 / 12, spread, chance),
    )
    return Specimen("planted messages", subject, truths)
