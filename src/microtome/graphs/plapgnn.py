"""pLapGNN: clean a graph by a weighted p-Laplacian, then train on what is left (Sirohi, Halder, Kumar & Kumar 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.data.graphs import geometric
from microtome.errors import UsageError
from microtome.graphs.poisoning import injected, rebuilt
from microtome.graphs.purification import similarity

geometric()
from torch_geometric.nn import GCNConv  # noqa: E402 - only once it is known to be there
from torch_geometric.transforms import BaseTransform  # noqa: E402

FLOOR = 1e-3
"""Added to a weight where its power's slope is taken, infinite at zero for a power below 1."""


@dataclass(kw_only=True)
class PLaplacianCleaning(BaseTransform):
    """A transform: new weights for the given edges, smooth along the features and near the given Laplacian.

    With a the given weights (ones), L(w) the Laplacian of weights w and y the features' rows at length 1,

        minimise over w >= 0   1/2 |L(w) - L(a)|_F^2 + smooth * sum over edges uv of w_uv^bend |y_u - y_v|^p,

    the second term being the energy of the weighted p-Laplacian (``bend`` 1: Bühler & Hein 2009; p / 2: each difference
    scaled by the root of its weight, Fu, Zhao & Bian 2022). Majorisation-minimisation: the power is concave for
    ``bend`` <= 1 and lies below its tangent; the quadratic, of Hessian 2 I + B'B with B the unsigned incidence, lies
    below one of diagonal 2 + d_u + d_v. Each step is then one soft threshold an edge,

        w_e <- max(0, w_e - (2 (w - a)_e + (B'B (w - a))_e + slope_e) / (2 + d_u + d_v)),
        slope_e = smooth * bend * (w_e + FLOOR)^(bend - 1) * |y_u - y_v|^p,

    and the objective never rises. For ``bend`` 1 it is convex; a smaller one drives the light edges to nought. B'B ties
    the edges of a node together: what one loses, the others resist losing. The form of the closeness and the support
    (the given edges) are our reading.

    Args:
        p: power of the distances; above 2 the far are set off more from the near.
        bend: power of the weights, above 0 and at most 1.
        smooth: weight of the energy.
        steps: at most; it ends earlier when no weight moves by more than 1e-4.
        keep: edges whose weight falls below are left out.
    """

    p: float = 4.0
    bend: float = 1.0
    smooth: float = 1.0
    steps: int = 300
    keep: float = 0.01

    def weigh(self, pairs: Tensor, x: Tensor) -> Tensor:
        """[m] the weights of undirected edges [2, m] between rows of x [n, d].

        Raises:
            UsageError: MT476 for powers out of range or a negative weight of the energy.
        """
        if self.p <= 0 or not 0 < self.bend <= 1 or self.smooth < 0:
            raise UsageError(
                "MT476",
                f"p={self.p}, bend={self.bend}, smooth={self.smooth}: p > 0, 0 < bend <= 1, smooth >= 0",
            )
        energy = distances(x, pairs) ** self.p
        degree = torch.bincount(pairs.flatten(), minlength=len(x)).double()
        step = 1 / (2 + degree[pairs].sum(0))
        weight = torch.ones(pairs.shape[1], dtype=torch.float64)
        for _ in range(self.steps):
            slope = self.smooth * self.bend * (weight + FLOOR) ** (self.bend - 1) * energy
            moved = (weight - step * (pull(weight - 1, pairs, len(x)) + slope)).clamp_min(0)
            change = float((moved - weight).abs().max()) if len(weight) else 0.0
            weight = moved
            if change < 1e-4:
                break
        return weight

    def objective(self, weight: Tensor, pairs: Tensor, x: Tensor) -> Tensor:
        """What is minimised, with FLOOR under the power."""
        off = weight - 1
        energy = (weight + FLOOR) ** self.bend * distances(x, pairs) ** self.p
        return (off * pull(off, pairs, len(x))).sum() / 2 + self.smooth * energy.sum()

    def forward(self, data: Any) -> Any:
        """The graph with ``edge_weight`` and without the edges that lost theirs; the given one is not changed."""
        return self.with_weight(data, self.weigh(injected(data)[0], data.x))

    __call__ = forward

    def with_weight(self, data: Any, weight: Tensor) -> Any:
        """The graph with weights [m] of its undirected edges, in the order of ``injected``."""
        pairs, marks = injected(data)
        kept = weight >= self.keep
        return rebuilt(data, pairs[:, kept], edge_injected=marks[kept], edge_weight=weight[kept].float())


def distances(x: Tensor, pairs: Tensor) -> Tensor:
    """[m] float64 Euclidean distance of the rows at length 1, from their cosine."""
    return (2 - 2 * similarity(x, pairs).double()).clamp_min(0).sqrt()


def pull(off: Tensor, pairs: Tensor, nodes: int) -> Tensor:
    """[m] (2 I + B'B) off, the gradient of 1/2 |L(w) - L(a)|_F^2 with ``off`` = w - a [m]."""
    u, v = pairs
    at = torch.zeros(nodes, dtype=off.dtype).index_add(0, u, off).index_add(0, v, off)
    return 2 * off + at[u] + at[v]


class WeightedGCN(nn.Module):
    """Two graph convolutions over the edge weights that it is built with, those of the edges it is called with.

    Args:
        weight: [edges].
        inputs, hidden, outputs: widths.
        dropout: before the second convolution.
    """

    weight: Tensor

    def __init__(
        self, weight: Tensor, inputs: int, hidden: int, outputs: int, *, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.first, self.second = GCNConv(inputs, hidden), GCNConv(hidden, outputs)
        self.register_buffer("weight", weight)
        self.dropout = dropout

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """[nodes, inputs] -> [nodes, outputs] logits."""
        x = F.relu(self.first(x, edge_index, self.weight))
        return self.second(F.dropout(x, self.dropout, self.training), edge_index, self.weight)


__all__ = ["FLOOR", "PLaplacianCleaning", "WeightedGCN", "distances", "pull"]
