"""Effective resistance: exact, sparse for pairs, batched for many graphs, and rewiring that lowers its total.

A graph is an electrical network of unit resistors. R(u, v) = (e_u - e_v)' L^+ (e_u - e_v), L^+ the pseudoinverse of the
Laplacian; the commute time of a random walk is 2 m R(u, v) (Chandra et al. 1989), the total resistance of a connected
graph n tr L^+. Adding the edge (u, v) is a change of rank one: with w = L^+ (e_u - e_v),

    L^+  ->  L^+ - w w' / (1 + R(u, v)),    total  ->  total - n |w|^2 / (1 + R(u, v)),

so the best edge of all is found without recomputing anything (Black, Wan, Nayyeri & Wang 2023). Edges are taken as
undirected; both directions given count once, loops not at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from microtome.errors import UsageError

DENSE = 6000
"""Most nodes for which a full [n, n] pseudoinverse is made."""


def undirected(edge_index: Tensor, nodes: int) -> Tensor:
    """[2, m] each undirected edge once, smaller end first; no loops, no repeats."""
    low, high = edge_index.amin(0), edge_index.amax(0)
    keys = (low * nodes + high)[low != high].unique()
    return torch.stack([keys // nodes, keys % nodes])


def adjacency(edge_index: Tensor, nodes: int) -> Any:
    """Symmetric scipy CSR matrix of ones."""
    from scipy.sparse import coo_array

    a, b = undirected(edge_index.cpu(), nodes).numpy()
    ones = np.ones(2 * len(a))
    return coo_array((ones, (np.concatenate([a, b]), np.concatenate([b, a]))), (nodes, nodes)).tocsr()


def laplacian(edge_index: Tensor, nodes: int) -> Tensor:
    """[n, n] float64, degrees less adjacency."""
    a, b = undirected(edge_index, nodes)
    dense = torch.zeros(nodes, nodes, dtype=torch.float64)
    dense[a, b] = dense[b, a] = -1.0
    return dense - torch.diag(dense.sum(1))


def pseudoinverse(edge_index: Tensor, nodes: int) -> Tensor:
    """[n, n] float64: L^+, exact for any number of components: inv(L + P) - P, P the projection on constants.

    Raises:
        UsageError: MT446 beyond :data:`DENSE` nodes.
    """
    if nodes > DENSE:
        raise UsageError(
            "MT446", f"the pseudoinverse of {nodes} nodes is too large", fix="ask resistances() for pairs"
        )
    constant = _constants(components(edge_index, nodes))
    return torch.linalg.inv(laplacian(edge_index, nodes) + constant) - constant


def pseudoinverses(edge_index: Tensor, graph: Tensor, graphs: int) -> tuple[Tensor, Tensor]:
    """L^+ of each of many small graphs at once.

    Args:
        edge_index: [2, m] of all graphs side by side.
        graph: [nodes] int64, which graph a node belongs to, ascending.
        graphs: how many.

    Returns:
        [graphs, s, s] float64, s the most nodes of a graph, padded with zeros, and [graphs] the numbers of nodes.
    """
    sizes = torch.bincount(graph, minlength=graphs)
    first = sizes.cumsum(0) - sizes
    most = int(sizes.max())
    a, b = undirected(edge_index, len(graph))
    own = graph[a]
    flat = torch.zeros(graphs, most, most, dtype=torch.float64)
    flat[own, a - first[own], b - first[own]] = -1.0
    flat[own, b - first[own], a - first[own]] = -1.0
    dense = flat - torch.diag_embed(flat.sum(2))
    part = components(edge_index, len(graph))
    padded = torch.full((graphs, most), -1)
    place = torch.arange(len(graph)) - first[graph]
    padded[graph, place] = part
    # What pads is put on the diagonal, where it is inverted by itself and taken away again.
    padding = torch.diag_embed((padded < 0).double())
    constant = (padded[:, :, None] == padded[:, None, :]) & (padded >= 0)[:, :, None]
    projection = constant.double() / constant.sum(2, keepdim=True).clamp_min(1)
    return torch.linalg.inv(dense + projection + padding) - projection - padding, sizes


def components(edge_index: Tensor, nodes: int) -> Tensor:
    """[nodes] int64, the connected component of each node."""
    from scipy.sparse.csgraph import connected_components

    _, found = connected_components(adjacency(edge_index, nodes), directed=False)
    return torch.from_numpy(found.astype(np.int64))


def _constants(part: Tensor) -> Tensor:
    same = part[:, None] == part
    return same / same.sum(1, keepdim=True).double()


def pair_resistance(inverse: Tensor, pairs: Tensor) -> Tensor:
    """[p] R(u, v) for pairs [2, p] from L^+ [n, n]; of pairs in different components it means nothing."""
    u, v = pairs
    diagonal = inverse.diagonal()
    return diagonal[u] + diagonal[v] - 2 * inverse[u, v]


def resistances(edge_index: Tensor, nodes: int, pairs: Tensor) -> Tensor:
    """[p] float64 R(u, v) of pairs [2, p], inf between components; sparse: one factorisation, p right-hand sides.

    One node of each component is grounded; what is left is positive definite and is factorised once (SuperLU).
    """
    from scipy.sparse import csc_array, diags_array
    from scipy.sparse.linalg import splu

    matrix = adjacency(edge_index, nodes)
    part = components(edge_index, nodes).numpy()
    grounded = np.unique(part, return_index=True)[1]
    free = np.ones(nodes, dtype=bool)
    free[grounded] = False
    place = np.cumsum(free) - 1
    u, v = pairs.cpu().numpy()
    found = np.where(part[u] == part[v], 0.0, np.inf)
    todo = np.flatnonzero((part[u] == part[v]) & (u != v))
    if len(todo) and free.any():
        degrees = np.asarray(matrix.sum(1)).ravel()
        inner = csc_array((diags_array(degrees).tocsr() - matrix)[free][:, free])
        factor = splu(inner, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True})
        for some in np.array_split(todo, max(len(todo) * nodes // (1 << 24), 1)):
            right = np.zeros((int(free.sum()), len(some)))
            columns = np.arange(len(some))
            for ends, sign in ((u[some], 1.0), (v[some], -1.0)):
                kept = free[ends]
                right[place[ends[kept]], columns[kept]] += sign
            solved = factor.solve(right)
            potential = np.zeros((2, len(some)))
            for row, ends in enumerate((u[some], v[some])):
                kept = free[ends]
                potential[row, kept] = solved[place[ends[kept]], columns[kept]]
            found[some] = potential[0] - potential[1]
    return torch.from_numpy(found)


def total_resistance(inverse: Tensor, nodes: int | None = None) -> float:
    """N tr L^+ of a connected graph, the sum of R over all pairs."""
    return float((nodes or len(inverse)) * inverse.diagonal().sum())


def decrease(inverse: Tensor, pairs: Tensor) -> Tensor:
    """[p] by how much the total resistance falls when the edge is added, exact: n |w|^2 / (1 + R)."""
    u, v = pairs
    w = inverse[:, u] - inverse[:, v]
    return len(inverse) * w.square().sum(0) / (1 + pair_resistance(inverse, pairs))


def with_edge(inverse: Tensor, u: int, v: int) -> Tensor:
    """[n, n] L^+ after the edge (u, v) is added, exact; both ends must be in one component."""
    w = inverse[:, u] - inverse[:, v]
    return inverse - torch.outer(w, w) / (1 + w[u] - w[v])


def best_edges(edge_index: Tensor, nodes: int, count: int) -> tuple[Tensor, Tensor]:
    """Greedy total resistance rewiring: add one after another the absent edge that lowers the total most.

    Every step weighs all pairs, in O(n^2): M = (L^+)^2 is kept beside L^+, for |w|^2 = M_uu + M_vv - 2 M_uv, and both
    change by rank one or two. Pairs in different components are left alone.

    Returns:
        [2, k] the edges (k may be less than ``count`` when the graph is complete), and [k] the decrease by each.
    """
    inverse = pseudoinverse(edge_index, nodes)
    square = inverse @ inverse
    part = components(edge_index, nodes)
    barred = part[:, None] != part
    barred |= torch.eye(nodes, dtype=torch.bool)
    a, b = undirected(edge_index, nodes)
    barred[a, b] = barred[b, a] = True
    size = torch.bincount(part)[part].double()[:, None]
    chosen, gains = [], []
    for _ in range(count):
        d, m = inverse.diagonal(), square.diagonal()
        resistance = d[:, None] + d - 2 * inverse
        gain = size * (m[:, None] + m - 2 * square).clamp_min(0) / (1 + resistance)
        gain.masked_fill_(barred, -1.0)
        at = int(gain.argmax())
        u, v = divmod(at, nodes)
        if float(gain[u, v]) < 0:
            break
        w = inverse[:, u] - inverse[:, v]
        scale = 1 + float(w[u] - w[v])
        turned = inverse @ w
        cross = torch.outer(turned, w)
        square -= (cross + cross.T) / scale - torch.outer(w, w) * float(w @ w) / scale**2
        inverse -= torch.outer(w, w) / scale
        barred[u, v] = barred[v, u] = True
        chosen.append((min(u, v), max(u, v)))
        gains.append(float(gain.flatten()[at]))
    return torch.tensor(chosen, dtype=torch.long).reshape(-1, 2).T, torch.tensor(gains, dtype=torch.float64)


def _transform_base() -> type:
    try:
        from torch_geometric.transforms import BaseTransform
    except ImportError:
        return object
    return BaseTransform


@dataclass
class LowerTotalResistance(_transform_base()):  # type: ignore[misc]
    """A PyTorch Geometric transform: add ``count`` edges that lower the total effective resistance most (GTR).

    New edges go in both directions and get zeros as attributes, ones as weights. Up to :data:`DENSE` nodes.
    """

    count: int = 10

    def forward(self, data: Any) -> Any:
        """The graph with more edges; the given one is not changed."""
        edges, _ = best_edges(data.edge_index, data.num_nodes, self.count)
        changed = data.__copy__()
        both = torch.cat([edges, edges.flip(0)], 1)
        changed.edge_index = torch.cat([data.edge_index, both], 1)
        if getattr(data, "edge_attr", None) is not None:
            zeros = data.edge_attr.new_zeros(both.shape[1], *data.edge_attr.shape[1:])
            changed.edge_attr = torch.cat([data.edge_attr, zeros])
        if getattr(data, "edge_weight", None) is not None:
            changed.edge_weight = torch.cat([data.edge_weight, data.edge_weight.new_ones(both.shape[1])])
        return changed

    __call__ = forward


__all__ = [
    "LowerTotalResistance", "adjacency", "best_edges", "components", "decrease", "laplacian", "pair_resistance",
    "pseudoinverse", "pseudoinverses", "resistances", "total_resistance", "undirected", "with_edge",
]  # fmt: skip
