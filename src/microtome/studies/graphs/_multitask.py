"""Networks that answer the questions of classical graph algorithms, one convolution each, and their errors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GCNConv, PNAConv
from torch_geometric.nn.aggr import MultiAggregation

from microtome.graphs.multisets import AGGREGATORS
from microtome.learn.graph_training import KeepBest, fit_graphs
from microtome.studies.graphs import _networks as n

SCALERS = ["identity", "amplification", "attenuation"]
SINGLE, OTHERS = ("mean", "max", "min", "std", "sum"), ("GCN", "GAT", "GIN")
Convolution = Callable[[int, int], nn.Module]


class Reader(nn.Module):
    """One convolution with a gated update, repeated for a quarter as many rounds as the largest graph has nodes."""

    def __init__(self, conv: Convolution, hidden: int) -> None:
        super().__init__()
        self.first, self.conv = nn.Linear(2, hidden), conv(hidden, hidden)
        self.cell = nn.GRUCell(hidden, hidden)
        self.pool = MultiAggregation(["mean", "max", "min"])
        self.node = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 3))
        self.graph = nn.Sequential(nn.Linear(3 * hidden, hidden), nn.ReLU(), nn.Linear(hidden, 3))

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """[nodes, 2] -> node answers [nodes, 3] and graph answers [graphs, 3]."""
        h = self.first(x)
        for _ in range(int(torch.bincount(batch).max()) // 4):
            h = self.cell(F.relu(self.conv(h, edge_index)), h)
        return self.node(h), self.graph(self.pool(h, batch))


class Constant(nn.Module):
    """Answers what it was given, whatever the graph."""

    def __init__(self, node: Tensor, graph: Tensor) -> None:
        super().__init__()
        self.node, self.graph = node, graph

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """The constants."""
        return self.node, self.graph


def convolutions(histogram: Tensor) -> dict[str, Convolution]:
    """PNA, its parts and others; ``histogram`` counts the nodes of each degree in the training graphs."""

    def principal(aggregators: list[str], scalers: list[str]) -> Convolution:
        return partial(PNAConv, aggregators=aggregators, scalers=scalers, deg=histogram)

    several: dict[str, Convolution] = {
        "PNA": principal(list(AGGREGATORS), SCALERS),
        "PNA without scalers": principal(list(AGGREGATORS), ["identity"]),
    }
    single = {name: principal([name], ["identity"]) for name in SINGLE}
    return several | single | {"GCN": GCNConv, "GAT": GATConv, "GIN": n.isomorphism}


def errors(model: nn.Module, batch: Any, by: tuple[Tensor, Tensor]) -> Tensor:
    """[6] mean squared error of each task, of targets divided by ``by``."""
    nodes, graphs = model(batch.x, batch.edge_index, batch.batch)
    off = (nodes - batch.node_y / by[0]).square().mean(0), (graphs - batch.graph_y / by[1]).square().mean(0)
    return torch.cat(off)


def trained(
    build: Callable[[], nn.Module], data: dict[str, Any], by: tuple[Tensor, Tensor], epochs: int, seed: int
) -> nn.Module:
    """The weights of the epoch with the least validation error."""
    model: nn.Module = n.seeded(build, seed)
    best = KeepBest(model, lambda: float(errors(model, data["validation"], by).log10().mean()), every=4)
    fit_graphs(
        model, data["train"], epochs=epochs, rate=0.004, batch_size=32, seed=seed, after_epoch=best,
        loss=lambda network, batch: errors(network, batch, by).mean(),
    )  # fmt: skip
    return best.restore()


__all__ = ["OTHERS", "SCALERS", "SINGLE", "Constant", "Reader", "convolutions", "errors", "trained"]
