"""The networks of a fair comparison, one frame around many convolutions (Dwivedi et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.data.graphs import geometric
from microtome.errors import UsageError
from microtome.nn.pathnn import PathNN

geometric()
from torch_geometric.nn import (  # noqa: E402 - only once it is known to be there
    GATConv,
    GCNConv,
    GINConv,
    GMMConv,
    PNAConv,
    ResGatedGraphConv,
    SAGEConv,
    global_mean_pool,
)
from torch_geometric.utils import degree  # noqa: E402

Level = Literal["node", "graph", "edge"]
"""What is classified."""
NETWORKS = {
    "MLP": 1, "GCN": 1, "SAGE": 1, "GAT": 4, "GatedGCN": 1, "MoNet": 1, "GIN": 1, "PNA": 1, "PathNN": 1,
}  # fmt: skip
"""Name -> what the width has to be a multiple of (heads)."""


class Own(nn.Module):
    """A linear map that looks at no edge."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """[nodes, d] -> [nodes, d]."""
        return self.linear(x)


class MoNet(nn.Module):
    """Gaussian mixtures over a learned map of both ends' degrees, deg^-1/2 (Monti et al. 2017)."""

    def __init__(self, width: int, kernels: int = 3) -> None:
        super().__init__()
        self.place, self.conv = nn.Linear(2, 2), GMMConv(width, width, dim=2, kernel_size=kernels)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """[nodes, d] -> [nodes, d]."""
        scale = degree(edge_index[1], len(x), x.dtype).clamp_min(1).rsqrt()
        return self.conv(x, edge_index, torch.tanh(self.place(scale[edge_index.T])))


def _isomorphism(width: int) -> nn.Module:
    inner = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width))
    return GINConv(inner, train_eps=True)


def _principal(width: int, histogram: Tensor) -> nn.Module:
    scalers = ["identity", "amplification", "attenuation"]
    return PNAConv(width, width, ["mean", "max", "min", "std"], scalers, histogram)


_LAYERS: dict[str, Callable[[int, Tensor], nn.Module]] = {
    "MLP": lambda w, _: Own(w, w),
    "GCN": lambda w, _: GCNConv(w, w),
    "SAGE": lambda w, _: SAGEConv(w, w),
    "GAT": lambda w, _: GATConv(w, w // 4, heads=4),
    "GatedGCN": lambda w, _: ResGatedGraphConv(w, w),
    "MoNet": lambda w, _: MoNet(w),
    "GIN": lambda w, _: _isomorphism(w),
    "PNA": _principal,
}


class Frame(nn.Module):
    """Embedding, layers x + relu(norm(conv(x))), a perceptron of nodes, both ends of edges, or a graph's mean.

    Args:
        layers: convolutions of one width.
        inputs, width, outputs: widths.
        level: "node", "graph" or "edge".
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        inputs: int,
        width: int,
        outputs: int,
        level: Level,
    ) -> None:
        super().__init__()
        self.embed, self.level = nn.Linear(inputs, width), level
        self.convs = nn.ModuleList(layers)
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in layers)
        read = 2 * width if level == "edge" else width
        self.head = nn.Sequential(nn.Linear(read, width), nn.ReLU(), nn.Linear(width, outputs))

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        """[nodes, inputs] -> [nodes, outputs], [graphs, outputs] or [edges, outputs]."""
        x = self.embed(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + F.relu(norm(conv(x, edge_index)))
        if self.level == "edge":
            return self.head(x[edge_index.T].flatten(1))
        return self.head(global_mean_pool(x, batch) if self.level == "graph" else x)


class PathFrame(PathNN):
    """PathNN with all shortest paths, of graphs or of nodes."""

    def __init__(self, inputs: int, width: int, outputs: int, length: int, level: Level) -> None:
        super().__init__(inputs, width, outputs, length=length, norm=False)
        self.level = level

    def forward(
        self, x: Tensor, edge_index: Tensor, batch: Tensor, paths: Sequence[Any] | None = None
    ) -> Tensor:
        """[nodes, inputs] -> [nodes, outputs] or [graphs, outputs]."""
        if self.level == "graph":
            return super().forward(x, edge_index, batch, paths)
        return self.last(F.relu(self.first(self.embed(x, edge_index, paths))))


def build_network(
    name: str,
    inputs: int,
    outputs: int,
    graphs: Sequence[Any],
    width: int,
    *,
    depth: int,
    level: Level,
) -> nn.Module:
    """A network of :data:`NETWORKS`; the degrees of ``graphs``, those of training, scale PNA's aggregates.

    Raises:
        UsageError: MT451 for PathNN on edges, for which it has no head.
    """
    if name == "PathNN":
        if level == "edge":
            raise UsageError(
                "MT451", "PathNN classifies nodes and graphs, not edges", fix="name other networks"
            )
        return PathFrame(inputs, width, outputs, depth, level)
    histogram = torch.bincount(torch.cat([degree(g.edge_index[1], g.num_nodes, torch.long) for g in graphs]))
    return Frame([_LAYERS[name](width, histogram) for _ in range(depth)], inputs, width, outputs, level)


__all__ = ["NETWORKS", "Frame", "Level", "MoNet", "Own", "PathFrame", "build_network"]
