"""PathNN: every node reads the paths that lead to it with one recurrent cell (Michel, Nikolentzos et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.graphs.paths import Paths, enumerate_paths


class PathConv(nn.Module):
    """h_v' = relu(norm(h_v + sum over paths p of length k to v of LSTM(h_p_k, ..., h_p_1, h_v))).

    The cell reads from the far end towards the root. With distances each node of the path comes with an embedding of
    its hops from the root, which tells a path that doubles back from one that leads away.

    Args:
        hidden: width.
        cell: LSTM shared by the layers, batch first.
        distance: embedding of hops, shared by the layers; None without.
        norm: batch normalisation of the sum.
    """

    def __init__(
        self, hidden: int, cell: nn.LSTM, distance: nn.Embedding | None, *, norm: bool = True
    ) -> None:
        super().__init__()
        self.cell, self.distance = cell, distance
        self.norm = nn.BatchNorm1d(hidden) if norm else nn.Identity()

    def forward(self, x: Tensor, paths: Paths) -> Tensor:
        """[nodes, hidden] -> [nodes, hidden]."""
        read = x[paths.nodes.T.flip(1)]  # [paths, k + 1, hidden], the root last
        if self.distance is not None:
            read = torch.cat([read, self.distance(paths.hops.T.flip(1))], 2)
        total = x
        if len(read):
            total = x.index_add(0, paths.nodes[0], self.cell(read)[1][0][0])
        return F.relu(self.norm(total))


class PathNN(nn.Module):
    """A perceptron a node, one :class:`PathConv` a length 1..length, the sum over nodes, a perceptron.

    Args:
        inputs, hidden, outputs: widths.
        length: longest path.
        kind: one of :data:`microtome.graphs.paths.KINDS`: "one_shortest" (P in the paper), "all_shortest" (SP+) or
            "all_simple" (AP).
        distances: whether hops from the root are read; they say something along simple paths alone.
        dropout: before the last map.
        norm: batch normalisation; not where all features are equal, for a batch says nothing of their variance.
        most: paths of one length that are not exceeded.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        *,
        length: int = 3,
        kind: str = "all_shortest",
        distances: bool | None = None,
        dropout: float = 0.0,
        norm: bool = True,
        most: int = 4_000_000,
    ) -> None:
        super().__init__()
        with_hops = kind == "all_simple" if distances is None else distances
        self.length, self.kind, self.dropout, self.most = length, kind, dropout, most
        self.encode = nn.Sequential(
            nn.Linear(inputs, hidden),
            nn.BatchNorm1d(hidden) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
        )
        distance = nn.Embedding(length + 1, hidden) if with_hops else None
        cell = nn.LSTM(hidden * (2 if with_hops else 1), hidden, batch_first=True)
        self.convs = nn.ModuleList(PathConv(hidden, cell, distance, norm=norm) for _ in range(length))
        self.first, self.last = nn.Linear(hidden, hidden), nn.Linear(hidden, outputs)

    def paths(self, edge_index: Tensor, nodes: int) -> list[Paths]:
        """What the layers read of a graph."""
        return enumerate_paths(edge_index, nodes, self.length, self.kind, most=self.most)

    def embed(self, x: Tensor, edge_index: Tensor, paths: Sequence[Paths] | None = None) -> Tensor:
        """[nodes, inputs] -> [nodes, hidden]."""
        h = self.encode(x)
        given = self.paths(edge_index, len(x)) if paths is None else paths
        for conv, some in zip(self.convs, given, strict=True):
            h = conv(h, some)
        return h

    def forward(
        self, x: Tensor, edge_index: Tensor, batch: Tensor, paths: Sequence[Paths] | None = None
    ) -> Tensor:
        """[nodes, inputs] -> [graphs, outputs]; paths are found if they are not given."""
        h = self.embed(x, edge_index, paths)
        total = h.new_zeros(int(batch.max()) + 1, h.shape[1]).index_add(0, batch, h)
        return self.last(F.dropout(F.relu(self.first(total)), self.dropout, self.training))


__all__ = ["PathConv", "PathNN"]
