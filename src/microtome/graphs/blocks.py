"""Computational subgraphs of many nodes side by side: what a node's answer depends on, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Blocks:
    """Subgraphs of several sets of nodes, block-diagonal.

    Attributes:
        nodes: [n] int64, the node of the whole graph each row is, -1 for a row that stands for all nodes beyond reach.
        edges: [m] int64, the edge of the whole graph each column of ``edge_index`` is.
        edge_index: [2, m] positions in ``nodes``.
        node_block, edge_block: [n], [m] int64, the set each belongs to.
        index: [t] int64, rows that are asked for, set after set.
        index_block: [t] int64.
        count: how many sets.
    """

    nodes: Tensor
    edges: Tensor
    edge_index: Tensor
    node_block: Tensor
    edge_block: Tensor
    index: Tensor
    index_block: Tensor
    count: int

    def rows(self, value: Tensor) -> Tensor:
        """The blocks' rows of [nodes, ...]; zeros beyond reach."""
        inside = (self.nodes >= 0).reshape(-1, *[1] * (value.dim() - 1))
        return torch.where(inside, value[self.nodes], torch.zeros_like(value[:1]))

    def arguments(self, kwargs: Mapping[str, Any], nodes: int, edges: int) -> dict[str, Any]:
        """Further arguments of the network, cut as nodes or edges are where they have as many rows."""
        found = {}
        for key, value in kwargs.items():
            if isinstance(value, Tensor) and value.dim() and value.shape[0] == edges != nodes:
                found[key] = value[self.edges]
            elif isinstance(value, Tensor) and value.dim() and value.shape[0] == nodes:
                found[key] = self.rows(value)
            else:
                found[key] = value
        return found


def computational_blocks(edge_index: Tensor, nodes: int, sets: Sequence[Tensor], hops: int) -> Blocks:
    """The subgraph that the answers at each set of nodes depend on, in a network of ``hops`` convolutions.

    All edges into nodes up to ``hops`` away are kept, so that every node whose features are read keeps its degree, by
    which convolutions normalise. Where they come from beyond is never read: one row without features stands for it.

    Args:
        edge_index: [2, m], from row 0 to row 1.
        nodes: of the whole graph.
        sets: int64 tensors of nodes, each a question of its own.
        hops: convolutions.
    """
    order = torch.argsort(edge_index[1], stable=True)
    sources = edge_index[0][order]
    degree = torch.bincount(edge_index[1], minlength=nodes)
    ends = degree.cumsum(0)
    place = torch.full((nodes,), -1)
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    offset = 0
    for asked in sets:
        seen = [asked.unique()]
        place[seen[0]] = torch.arange(len(seen[0]))
        total, kept = len(seen[0]), []
        frontier = seen[0]
        for hop in range(hops + 1):
            into = _ranges(ends[frontier] - degree[frontier], degree[frontier])
            kept.append(order[into])
            new = sources[into].unique()
            new = new[place[new] < 0]
            if hop == hops:
                place[new] = total  # all of them are one row
                seen += [torch.full((1,), -1), new]
                total += 1
                break
            place[new] = torch.arange(total, total + len(new))
            total += len(new)
            seen.append(new)
            frontier = new
        beyond = seen.pop()
        own, edges = torch.cat(seen), torch.cat(kept)
        parts.append((own, edges, place[edge_index[:, edges]] + offset, place[asked] + offset))
        place[own[:-1]] = -1
        place[beyond] = -1
        offset += total
    block = [torch.full((len(part[i]),), b) for i in (0, 1, 3) for b, part in enumerate(parts)]
    many = len(parts)
    return Blocks(
        nodes=torch.cat([p[0] for p in parts]),
        edges=torch.cat([p[1] for p in parts]),
        edge_index=torch.cat([p[2] for p in parts], 1),
        node_block=torch.cat(block[:many]),
        edge_block=torch.cat(block[many : 2 * many]),
        index=torch.cat([p[3] for p in parts]),
        index_block=torch.cat(block[2 * many :]),
        count=many,
    )


def _ranges(start: Tensor, count: Tensor) -> Tensor:
    """The numbers start[i] .. start[i] + count[i] - 1, one run after another."""
    total = int(count.sum())
    first = (start - count.cumsum(0) + count).repeat_interleave(count)
    return first + torch.arange(total)


__all__ = ["Blocks", "computational_blocks"]
