"""Graph kernels: how many colours of refinement, or how many shortest paths, two graphs share.

Both are dot products of counts, so they are kept as sparse counts [graphs, kinds] and multiplied at once. Colours are
hashes that mean the same in every graph (:mod:`microtome.graphs.refinement`), so no table of labels is built.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from microtome.errors import UsageError
from microtome.graphs.homophily import mix
from microtome.graphs.refinement import feature_colours, refine


def subtree_kernels(
    edge_index: Tensor, graph: Tensor, graphs: int, *, x: Tensor | None = None, rounds: int = 5
) -> Tensor:
    """[rounds + 1, graphs, graphs] Weisfeiler-Leman subtree kernels after 0, 1, ... rounds (Shervashidze et al. 2011).

    k_h(G, H) = sum over rounds r <= h and colours c of (nodes of G with colour c in round r) times (those of H).

    Args:
        edge_index: [2, m]; graphs side by side.
        graph: [nodes] which graph a node belongs to.
        graphs: how many.
        x: [nodes, d] features that colour the nodes at first; equal rows have one colour.
        rounds: of refinement.
    """
    colours = feature_colours(x, len(graph))
    found = [_products(colours, graph, graphs)]
    for _ in range(rounds):
        colours = refine(colours, edge_index)
        found.append(found[-1] + _products(colours, graph, graphs))
    return torch.stack(found)


def shortest_path_kernel(
    edge_index: Tensor, graph: Tensor, graphs: int, *, x: Tensor | None = None, longest: int | None = None
) -> Tensor:
    """[graphs, graphs] products of counts of (colour, colour, distance) over ordered pairs of nodes.

    Pairs that no path joins, and a node with itself, are not counted (Borgwardt & Kriegel 2005, with labels compared
    exactly).

    Args:
        edge_index, graph, graphs, x: as :func:`subtree_kernels`.
        longest: distance at which the search ends; None for all. Memory is one number a pair within it.
    """
    colours = feature_colours(x, len(graph))
    keys, owners = [torch.zeros(0, dtype=torch.long)], [torch.zeros(0, dtype=torch.long)]
    for distance, (a, b) in enumerate(_by_distance(edge_index, len(graph), longest), 1):
        keys.append(mix(mix(colours[a]) * 3 + mix(colours[b] ^ 0x5BD1E995) * 5 + distance))
        owners.append(graph[a])
    return _products(torch.cat(keys), torch.cat(owners), graphs)


def cosine(kernel: Tensor) -> Tensor:
    """[..., n, n] k(G, H) / sqrt(k(G, G) k(H, H)); 0 for a graph that has nothing."""
    size = kernel.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    scale = torch.where(size > 0, 1 / size.clamp_min(1e-300), torch.zeros_like(size))
    return kernel * scale[..., None] * scale[..., None, :]


def _products(keys: Tensor, owner: Tensor, graphs: int) -> Tensor:
    """[graphs, graphs] float64 dot products of how often each key occurs in each graph."""
    import scipy.sparse

    if len(owner) and (int(owner.min()) < 0 or int(owner.max()) >= graphs):
        raise UsageError(
            "MT504", f"nodes belong to graphs outside 0..{graphs - 1}", fix="give graphs=their number"
        )
    kinds, place = keys.unique(return_inverse=True)
    at = (owner.numpy(), place.numpy())
    counts = scipy.sparse.coo_array((np.ones(len(keys)), at), shape=(graphs, len(kinds))).tocsr()
    return torch.from_numpy(np.asarray((counts @ counts.T).todense()))


def _by_distance(edge_index: Tensor, nodes: int, longest: int | None) -> Any:
    """For distance 1, 2, ...: (from [p], to [p]) of the ordered pairs that are so far apart."""
    import scipy.sparse

    source, target = (e.numpy() for e in edge_index)
    step = scipy.sparse.coo_array(
        (np.ones(len(source), bool), (source, target)), shape=(nodes, nodes)
    ).tocsr()
    seen = scipy.sparse.eye_array(nodes, dtype=bool, format="csr")
    front = seen
    while longest is None or longest > 0:
        longest = None if longest is None else longest - 1
        front = front @ step
        front = (front - front.multiply(seen).astype(bool)).astype(bool) if front.nnz else front
        front.eliminate_zeros()
        if not front.nnz:
            return
        seen = seen + front
        pairs = front.tocoo()
        yield torch.from_numpy(pairs.row.astype(np.int64)), torch.from_numpy(pairs.col.astype(np.int64))


__all__ = ["cosine", "shortest_path_kernel", "subtree_kernels"]
