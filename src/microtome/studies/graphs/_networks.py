"""Small graph networks that the studies of this room share, of PyTorch Geometric's layers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GCNConv, GINConv, SAGEConv, global_add_pool

from microtome.statistics import student


class NodeNetwork(nn.Module):
    """Convolutions with ReLU and dropout between; ``residual`` adds each layer's input to its output."""

    def __init__(
        self,
        build: Callable[[int, int], nn.Module],
        widths: Sequence[int],
        *,
        residual: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(build(a, b) for a, b in itertools.pairwise(widths))
        self.residual, self.dropout = residual, dropout

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """[nodes, d] -> [nodes, k]."""
        for i, conv in enumerate(self.convs):
            if i:
                x = F.dropout(F.relu(x), self.dropout, self.training)
            y = conv(x, edge_index)
            x = x + y if self.residual and y.shape == x.shape else y
        return x


class Own(nn.Module):
    """A linear map that looks at no edge: the multi-layer perceptron among the convolutions."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """[nodes, d] -> [nodes, k]."""
        return self.linear(x)


CONVOLUTIONS: dict[str, Callable[[int, int], nn.Module]] = {"GCN": GCNConv, "SAGE": SAGEConv, "MLP": Own}


class GraphNetwork(nn.Module):
    """Convolutions, the sum over the nodes after each of them and before, and a linear map of all sums."""

    def __init__(
        self, build: Callable[[int, int], nn.Module], inputs: int, hidden: int, outputs: int, depth: int
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(build(inputs if i == 0 else hidden, hidden) for i in range(depth))
        self.head = nn.Linear(inputs + depth * hidden, outputs)

    def embed(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        """[graphs, inputs + depth * hidden]."""
        found = [global_add_pool(x, batch)]
        for conv in self.convs:
            x = F.relu(conv(x, edge_index))
            found.append(global_add_pool(x, batch))
        return torch.cat(found, 1)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        """[nodes, d] -> [graphs, k]."""
        return self.head(self.embed(x, edge_index, batch))


def isomorphism(inputs: int, outputs: int) -> nn.Module:
    """A GIN layer with a perceptron of one hidden layer."""
    return GINConv(
        nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Linear(outputs, outputs)), train_eps=True
    )


def aggregating(how: str) -> Callable[[int, int], nn.Module]:
    """A layer of the node's own row and the mean or maximum of its neighbours'."""
    return lambda inputs, outputs: SAGEConv(inputs, outputs, aggr=how)


def summary(name: str, values: Sequence[float]) -> dict[str, float]:
    """Mean with Student's interval over seeds."""
    mean, low, high = student(values)
    return {name: mean, f"{name}, low": low, f"{name}, high": high}


def seeded(build: Callable[[], Any], seed: int) -> Any:
    """Build from fixed random numbers."""
    torch.manual_seed(seed)
    return build()
