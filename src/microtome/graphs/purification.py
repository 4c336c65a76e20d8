"""Plain defences against poisoned edges: cut edges of unlike ends, or propagate over a matrix of low rank.

Both score every edge (larger is more trusted), so that they can be compared by how well they find what was injected.
Cutting is Jaccard-GCN (Wu, Wang, Tyshetskiy, Docherty, Lu & Zhu 2019), the low rank GCN-SVD (Entezari, Al-Sayouri,
Darvishzadeh & Papalexakis 2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.data.graphs import geometric
from microtome.errors import UsageError
from microtome.graphs.poisoning import injected, rebuilt
from microtome.graphs.resistance import adjacency
from microtome.statistics import auroc

geometric()
from torch_geometric.transforms import BaseTransform  # noqa: E402 - only once it is known to be there

Metric = Literal["cosine", "jaccard"]


def similarity(x: Tensor, pairs: Tensor, metric: Metric = "cosine") -> Tensor:
    """[p] likeness of the two rows of x [n, d] that each of ``pairs`` [2, p] names; rows of zeros are unlike all.

    Jaccard's is the share of non-zero columns they have in common, cosine's their normalised product.
    """
    rows = (x != 0).float() if metric == "jaccard" else F.normalize(x.float(), dim=1)
    size = rows.sum(1)
    step = max((1 << 24) // max(x.shape[1], 1), 1)
    found = [x.new_zeros(0, dtype=torch.float32)]
    for u, v in pairs.split(step, dim=1):
        common = (rows[u] * rows[v]).sum(1)
        found.append(common / (size[u] + size[v] - common).clamp_min(1) if metric == "jaccard" else common)
    return torch.cat(found)


@dataclass
class DropUnlike(BaseTransform):
    """A transform: cut the edges whose ends are less alike than ``threshold``.

    Args:
        threshold: of the likeness of :func:`similarity`.
        metric: its kind; Jaccard's is meant for features that are there or not.
    """

    threshold: float = 0.01
    metric: Metric = "jaccard"

    def forward(self, data: Any) -> Any:
        """The graph without those edges, each other in both directions; the given one is not changed."""
        pairs, marks = injected(data)
        kept = similarity(data.x, pairs, self.metric) >= self.threshold
        return rebuilt(data, pairs[:, kept], edge_injected=marks[kept])

    __call__ = forward


class LowRank:
    """The leading eigenpairs of an adjacency matrix, A_r = U diag(s) U'.

    Args:
        edge_index: [2, m], taken as undirected.
        nodes: how many.
        rank: eigenpairs kept, those of the largest absolute value (for a symmetric matrix the truncated SVD).

    Raises:
        UsageError: MT474 for a rank that is not in 1..nodes - 1.
    """

    def __init__(self, edge_index: Tensor, nodes: int, rank: int = 15) -> None:
        from scipy.sparse.linalg import eigsh

        if not 1 <= rank < nodes:
            raise UsageError("MT474", f"rank {rank} is not in 1..{nodes - 1}")
        start = np.random.RandomState(0).rand(nodes)
        values, vectors = eigsh(adjacency(edge_index, nodes), k=rank, which="LM", v0=start)
        self.values, self.vectors = torch.from_numpy(values).float(), torch.from_numpy(vectors).float()

    def score(self, pairs: Tensor) -> Tensor:
        """[p] (A_r)_uv, how well few dimensions explain the edge."""
        u, v = pairs
        return (self.vectors[u] * self.values * self.vectors[v]).sum(1)

    def spread(self, x: Tensor) -> Tensor:
        """[n, d] D^-1/2 (A_r + I) D^-1/2 x without forming the matrix; D holds its row sums, kept at 1 at least."""
        ones = torch.ones(len(x), 1)
        degree = (self.vectors @ (self.values[:, None] * (self.vectors.T @ ones)) + 1).clamp_min(1.0)
        y = degree.rsqrt() * x
        return degree.rsqrt() * (self.vectors @ (self.values[:, None] * (self.vectors.T @ y)) + y)


class LowRankGCN(nn.Module):
    """Two graph convolutions over a matrix of low rank; the edges it is called with are not read.

    Args:
        low: the matrix.
        inputs, hidden, outputs: widths.
        dropout: before the second map.
    """

    def __init__(self, low: LowRank, inputs: int, hidden: int, outputs: int, *, dropout: float = 0.5) -> None:
        super().__init__()
        self.low, self.dropout = low, dropout
        self.first, self.second = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """[nodes, inputs] -> [nodes, outputs] logits."""
        x = F.relu(self.low.spread(self.first(x)))
        return self.low.spread(self.second(F.dropout(x, self.dropout, self.training)))


def injected_auroc(trust: Tensor, marks: Tensor) -> float | None:
    """How well low trust [m] finds injected edges [m]: the area under the ROC curve, None where one kind is absent."""
    return auroc(-trust.double().numpy(), marks.numpy())


__all__ = ["DropUnlike", "LowRank", "LowRankGCN", "Metric", "injected_auroc", "similarity"]
