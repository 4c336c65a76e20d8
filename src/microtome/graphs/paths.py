"""Every path of a graph up to a length, from all its nodes at once: one shortest, all shortest, or all simple.

A path is read from its root against the edges, so that along it messages reach the root. All roots grow together: each
path is extended by all neighbours of its end (rows of the sparse adjacency), then what does not belong is dropped.
Memory is that of the paths: with mean degree d there are about n d^k simple ones of length k.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from microtome.data.graphs import geometric
from microtome.errors import UsageError, nearest

geometric()
from torch_geometric.transforms import BaseTransform  # noqa: E402 - only once it is known to be there

KINDS = ("one_shortest", "all_shortest", "all_simple")


class Paths(NamedTuple):
    """Paths of one length k.

    Attributes:
        nodes: [k + 1, paths], the root first.
        hops: [k + 1, paths] distance of each node from the root; 0..k for shortest paths.
    """

    nodes: Tensor
    hops: Tensor


def enumerate_paths(
    edge_index: Tensor, nodes: int, length: int, kind: str = "all_simple", *, most: int = 4_000_000
) -> list[Paths]:
    """The paths of length 1 to ``length``, without repeats; self-loops and repeated edges are ignored.

    ``one_shortest`` keeps, of the shortest paths between two nodes, the one found first: which that is depends on the
    order of the nodes, so what is computed from it is not invariant.

    Args:
        edge_index: [2, edges], row 0 sends.
        nodes: of the graph.
        length: largest number of edges of a path.
        kind: one of :data:`KINDS`.
        most: paths of one length that are not exceeded.

    Raises:
        UsageError: MT453 for an unknown kind, a length below 1, or too many paths.
    """
    if kind not in KINDS:
        raise UsageError(
            "MT453", f"no kind of path is called '{kind}'", fix=nearest(kind, KINDS) or ", ".join(KINDS)
        )
    if length < 1:
        raise UsageError("MT453", f"paths have at least one edge, not {length}")
    return list(_grow(edge_index, nodes, length, kind, most))


def _grow(edge_index: Tensor, nodes: int, length: int, kind: str, most: int) -> Iterator[Paths]:
    rows = _rows(edge_index, nodes)
    roots = ends = torch.arange(nodes, device=edge_index.device)  # the outermost shell around every root
    paths = roots[None]  # [1, nodes]
    seen = roots * (nodes + 1)  # key root * nodes + node of every pair reached, sorted
    far = torch.zeros_like(seen)  # and its distance
    for step in range(1, length + 1):
        # The next shell is found whatever the kind: distances are asked of simple paths too.
        shell = _extended(ends, *rows)
        keys = (roots[shell.old] * nodes + shell.new).unique()
        keys = keys[~_among(keys, seen)]
        roots, ends = keys // nodes, keys % nodes
        total = int(rows[2][paths[-1]].sum())
        if total > most:
            raise UsageError(
                "MT453",
                f"about {total} paths of length {step}, more than {most}",
                fix="shorten the paths or raise most",
            )
        grown = _extended(paths[-1], *rows)
        paths = torch.cat([paths[:, grown.old], grown.new[None]])
        pairs = paths[0] * nodes + paths[-1]
        kept = (paths[:-1] != paths[-1]).all(0) if kind == "all_simple" else _among(pairs, keys)
        paths = paths[:, kept]
        if kind == "one_shortest":
            paths = paths[:, _first(pairs[kept])]
        order = torch.cat([seen, keys]).argsort()
        seen = torch.cat([seen, keys])[order]
        far = torch.cat([far, torch.full_like(keys, step)])[order]
        yield Paths(paths, far[torch.searchsorted(seen, paths[0] * nodes + paths)])


class _Extension(NamedTuple):
    old: Tensor
    """[paths] which path was extended."""
    new: Tensor
    """[paths] by which node."""


def _rows(edge_index: Tensor, nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    keys = edge_index[1] * nodes + edge_index[0]
    keys = keys[edge_index[0] != edge_index[1]].unique()
    count = torch.bincount(keys // nodes, minlength=nodes)
    return keys % nodes, count.cumsum(0) - count, count


def _extended(ends: Tensor, source: Tensor, start: Tensor, count: Tensor) -> _Extension:
    many = count[ends]
    old = torch.repeat_interleave(torch.arange(len(ends), device=ends.device), many)
    place = torch.arange(len(old), device=ends.device) - (many.cumsum(0) - many)[old]
    return _Extension(old, source[start[ends[old]] + place])


def _among(keys: Tensor, kept: Tensor) -> Tensor:
    """Whether each key is one of ``kept``, which is sorted."""
    if not len(kept):
        return torch.zeros_like(keys, dtype=torch.bool)
    place = torch.searchsorted(kept, keys).clamp_max(len(kept) - 1)
    return kept[place] == keys


def _first(keys: Tensor) -> Tensor:
    """[unique] where each key is seen first."""
    order = keys.argsort(stable=True)
    fresh = torch.ones_like(keys, dtype=torch.bool)
    fresh[1:] = keys[order][1:] != keys[order][:-1]
    return order[fresh]


class AddPaths(BaseTransform):
    """Adds ``path_index_k`` [k + 1, paths] and ``path_hops_k`` [paths, k + 1] for k = 1..length to a graph.

    Batches shift the indices by themselves, since PyTorch Geometric does so for names with "index".

    Args:
        length, kind, most: as of :func:`enumerate_paths`.
    """

    def __init__(self, length: int, kind: str = "all_simple", *, most: int = 4_000_000) -> None:
        self.length, self.kind, self.most = length, kind, most

    def forward(self, data: Any) -> Any:
        """The graph with its paths."""
        found = enumerate_paths(data.edge_index, data.num_nodes, self.length, self.kind, most=self.most)
        for k, (nodes, hops) in enumerate(found, 1):
            data[f"path_index_{k}"], data[f"path_hops_{k}"] = nodes, hops.T.contiguous()
        return data


def stored_paths(data: Any, length: int) -> list[Paths]:
    """The paths that :class:`AddPaths` stored in a graph or a batch."""
    return [Paths(data[f"path_index_{k}"], data[f"path_hops_{k}"].T) for k in range(1, length + 1)]


__all__ = ["KINDS", "AddPaths", "Paths", "enumerate_paths", "stored_paths"]
