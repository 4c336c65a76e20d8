"""Sets of numbers with exact answers, and networks that read them by any aggregation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import SAGEConv
from torch_geometric.nn.aggr import Aggregation
from torch_geometric.utils import sort_edge_index

from microtome.data.graph_generators import stochastic_blocks

TASKS = ("sum", "maximum", "second least", "median", "sign of the product")
WIDTH = 32


class Recurrent(Aggregation):
    """The state of a GRU after the last element of each set; PyTorch Geometric's reads on into the padding."""

    def __init__(self, width: int, *, ordered: bool = False) -> None:
        super().__init__()
        self.gru, self.ordered = nn.GRU(width, width, batch_first=True), ordered

    def forward(
        self, x: Tensor, index: Tensor | None = None, ptr: Tensor | None = None, dim_size: int | None = None,
        dim: int = -2,
    ) -> Tensor:  # fmt: skip
        """[n, width] -> [sets, width]; with ``ordered`` the elements are sorted by their first number."""
        if self.ordered and index is not None:
            order = x[:, 0].argsort(stable=True)
            x = x[order[index[order].argsort(stable=True)]]
        dense, there = self.to_dense_batch(x, index, ptr, dim_size, dim)
        if not dense.shape[1]:
            return dense.new_zeros(len(dense), dense.shape[2])
        states = self.gru(dense)[0]
        last = there.sum(1)
        chosen = states[torch.arange(len(states)), (last - 1).clamp_min(0)]
        return torch.where(last[:, None] > 0, chosen, torch.zeros_like(chosen))


class SetNetwork(nn.Module):
    """A perceptron an element, an aggregation, a perceptron a set."""

    def __init__(self, aggregate: Callable[[], nn.Module], times: int = 1) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(1, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.aggregate = aggregate()
        self.decode = nn.Sequential(nn.Linear(times * WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, len(TASKS)))

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        """[n, 1] elements and the set of each -> [sets, tasks]."""
        return self.decode(self.aggregate(self.encode(x), batch))


class NeighbourNetwork(nn.Module):
    """One convolution by an aggregation between two perceptrons: one number a node."""

    def __init__(self, aggregate: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(1, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.conv = SAGEConv(WIDTH, WIDTH, aggr=aggregate())
        self.decode = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        """[nodes, 1] -> [nodes]."""
        return self.decode(F.relu(self.conv(self.encode(x), edge_index)))[:, 0]


def answers(x: Tensor) -> Tensor:
    """[tasks] of the numbers of one set [n]; the sum is divided by 16."""
    ordered = x.sort().values
    sign = 1.0 - 2.0 * ((x < 0).sum() % 2)
    return torch.stack([x.sum() / 16, ordered[-1], ordered[1], x.median(), sign])


def drawn_sets(count: int, sizes: tuple[int, int], seed: int) -> list[Any]:
    """Sets of numbers offset + spread * u, each with its own offset and spread, and y [1, tasks]."""
    draw = torch.Generator().manual_seed(seed)
    none = torch.zeros(2, 0, dtype=torch.long)
    found = []
    for size in torch.randint(sizes[0], sizes[1] + 1, (count,), generator=draw).tolist():
        offset, spread = torch.rand(2, generator=draw).tolist()
        x = 2 * offset - 1 + (0.5 + spread) * (torch.rand(size, generator=draw) - 0.5)
        found.append(Data(x=x[:, None], y=answers(x)[None], edge_index=none, num_nodes=size))
    return found


def second_least_of_neighbours(count: int, seed: int) -> list[Any]:
    """Random graphs of 20 nodes with a number a node; y [nodes] is the second least among neighbours, 0 without two."""
    found = []
    for i in range(count):
        graph = stochastic_blocks(20, 2, degree=5, homophily=0.5, features=2, seed=1000 * seed + i)
        edges = sort_edge_index(graph.edge_index, sort_by_row=False)
        x = graph.x[:, :1]
        dense = torch.full((20, 20), float("inf"))
        dense[edges[1], edges[0]] = x[edges[0], 0]
        second = dense.sort(1).values[:, 1]
        found.append(
            Data(x=x, edge_index=edges, y=second.where(second.isfinite(), torch.zeros(20)), num_nodes=20)
        )
    return found


def shuffled(batch: Any, seed: int) -> Any:
    """The same sets with their elements in another order."""
    order = torch.randperm(batch.num_nodes, generator=torch.Generator().manual_seed(seed))
    order = order[batch.batch[order].argsort(stable=True)]
    return Batch(x=batch.x[order], edge_index=batch.edge_index, batch=batch.batch, y=batch.y)


__all__ = [
    "TASKS", "WIDTH", "NeighbourNetwork", "Recurrent", "SetNetwork", "answers", "drawn_sets",
    "second_least_of_neighbours", "shuffled",
]  # fmt: skip
