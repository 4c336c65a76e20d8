"""DGMLP: how far each node's features travel is set by how smooth they become, then a residual perceptron.

Zhang, Sheng, Jiang, Xia, Gao, Yang & Cui 2021, "Evaluating Deep Graph Neural Networks": the two depths of a graph
network, how far features travel and how many maps they pass, are chosen apart.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.data.graphs import geometric

geometric()
from torch_geometric.data import Data  # noqa: E402 - only once it is known to be there
from torch_geometric.nn.conv.gcn_conv import gcn_norm  # noqa: E402
from torch_geometric.transforms import BaseTransform  # noqa: E402


def propagated(x: Tensor, edge_index: Tensor, hops: int, *, teleport: float = 0.0) -> Tensor:
    """[hops + 1, n, d] X_0 = X and X_k = (1 - t) A X_(k-1) + t X, A the symmetrically normalised adjacency with loops.

    Args:
        teleport: t, a residual connection to the features themselves; 0 is plain propagation.
    """
    edges, weight = gcn_norm(edge_index, None, len(x), dtype=x.dtype)
    assert weight is not None
    adjacency = torch.sparse_coo_tensor(
        edges.flip(0), weight, (len(x), len(x)), check_invariants=False
    ).coalesce()
    found = [x]
    for _ in range(hops):
        found.append((1 - teleport) * (adjacency @ found[-1]) + teleport * x)
    return torch.stack(found)


def stationary(x: Tensor, edge_index: Tensor) -> Tensor:
    """[n, d] the limit of A^k X: within a connected part, sqrt(d_u) sum_v sqrt(d_v) x_v / sum_v d_v, loops counted."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    n = len(x)
    edges, _ = gcn_norm(edge_index, None, n, dtype=x.dtype)
    matrix = coo_matrix((torch.ones(edges.shape[1]).numpy(), edges.cpu().numpy()), shape=(n, n))
    count, part = connected_components(matrix, directed=False)
    owner = torch.from_numpy(part).long().to(x.device)
    degree = torch.bincount(edges[1], minlength=n).to(x)
    root = degree.sqrt()[:, None]
    total = x.new_zeros(count, x.shape[1]).index_add(0, owner, root * x)
    size = x.new_zeros(count).index_add(0, owner, degree)
    return root * (total / size[:, None])[owner]


def smoothing_levels(hops: Tensor, limit: Tensor) -> Tensor:
    """[hops + 1, n] how much of a node's own features and how little of the limit a hop still has.

    s_k(v) = cos(x_v^k, x_v^0) (1 - cos(x_v^k, x_v^inf)): near 0 once the node is as smooth as it will be.
    """
    return F.cosine_similarity(hops, hops[:1], dim=-1) * (1 - F.cosine_similarity(hops, limit[None], dim=-1))


class AdaptivePropagation(BaseTransform):
    """Replaces x by sum_k w_k(v) x_v^k, w(v) = softmax over k of s_k(v) / T, computed once before training.

    Our reading of the paper's node-adaptive combination; what is learnt comes after it.

    Args:
        hops: how far.
        temperature: T; small picks the hop with the largest level, large takes all hops alike.
    """

    def __init__(self, hops: int, temperature: float = 1.0) -> None:
        self.hops, self.temperature = hops, temperature

    def weights(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        """([hops + 1, n] weights, [hops + 1, n, d] features of each hop)."""
        hops = propagated(x, edge_index, self.hops)
        levels = smoothing_levels(hops, stationary(x, edge_index))
        return (levels / self.temperature).softmax(0), hops

    def forward(self, data: Data) -> Data:
        """Data with x [n, d] and edge_index -> a copy with the combined features."""
        assert data.x is not None and data.edge_index is not None
        weights, hops = self.weights(data.x, data.edge_index)
        data.x = (weights[..., None] * hops).sum(0)
        return data


class ResidualMLP(nn.Module):
    """A perceptron of ``depth`` linear maps; with ``residual`` a hidden layer adds what came in.

    Args:
        inputs, hidden, outputs: widths.
        depth: linear maps, at least 1.
        residual: whether hidden layers after the first add their input.
        dropout: before each map.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        depth: int,
        *,
        residual: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = [inputs, *[hidden] * (depth - 1), outputs]
        self.maps = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.residual, self.dropout = residual, dropout

    def forward(self, x: Tensor, edge_index: Tensor | None = None) -> Tensor:
        """[n, inputs] -> [n, outputs]; edges are not looked at."""
        *inner, last = self.maps
        for i, layer in enumerate(inner):
            y = F.relu(layer(F.dropout(x, self.dropout, self.training) if self.dropout else x))
            x = x + y if self.residual and i else y
        return last(F.dropout(x, self.dropout, self.training) if self.dropout else x)


class DGMLP(nn.Module):
    """:class:`AdaptivePropagation`, then :class:`ResidualMLP`, for graphs that change; else transform the data once.

    Args:
        inputs, hidden, outputs: widths.
        hops: propagation depth.
        depth: transformation depth.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        *,
        hops: int = 10,
        depth: int = 3,
        temperature: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.propagation = AdaptivePropagation(hops, temperature)
        self.mlp = ResidualMLP(inputs, hidden, outputs, depth, dropout=dropout)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """[n, inputs] -> [n, outputs]."""
        weights, hops = self.propagation.weights(x, edge_index)
        return self.mlp((weights[..., None] * hops).sum(0))


__all__ = ["DGMLP", "AdaptivePropagation", "ResidualMLP", "propagated", "smoothing_levels", "stationary"]
