"""Colour refinement (the Weisfeiler-Leman test of dimension 1), vectorised and the same in every batch.

A colour is a 64-bit hash of a node's own colour and of the multiset of its neighbours' (summed after mixing, so order
does not matter). Hashes need no table of colours: graphs in different batches can be compared. Two different multisets
get one colour with a probability of about 2^-64 a pair.
"""

from __future__ import annotations

import torch
from torch import Tensor

from microtome.graphs.homophily import mix


def feature_colours(x: Tensor | None, nodes: int) -> Tensor:
    """[nodes] int64, equal for equal rows of x ([nodes, d], exact); all equal without x."""
    if x is None:
        return torch.zeros(nodes, dtype=torch.long)
    bits = x.double().contiguous().view(torch.int64) if x.is_floating_point() else x.long()
    bits = torch.where(x == 0, torch.zeros_like(bits), bits)  # -0.0 and 0.0 are one number
    place = mix(torch.arange(x.shape[1], device=x.device) + 1)
    return mix(bits + place).sum(1)


def refine(colours: Tensor, edge_index: Tensor) -> Tensor:
    """One round: [nodes] int64 from [nodes] and edges [2, m] (row 0 sends, row 1 receives)."""
    source, target = edge_index
    gathered = torch.zeros_like(colours).index_add_(0, target, mix(colours ^ 0x5BD1E995)[source])
    return mix(mix(colours) * 3 + gathered)


def graph_colours(colours: Tensor, graph: Tensor, graphs: int) -> Tensor:
    """[graphs] int64: the multiset of each graph's colours."""
    total = torch.zeros(graphs, dtype=torch.long, device=colours.device)
    return mix(total.index_add_(0, graph, mix(colours ^ 0x1B873593)))


def weisfeiler_leman(
    edge_index: Tensor, graph: Tensor, graphs: int, *, x: Tensor | None = None, rounds: int = 0
) -> tuple[Tensor, Tensor]:
    """Refine until no colour splits any more, or for ``rounds`` rounds.

    Args:
        edge_index: [2, m].
        graph: [nodes] which graph a node belongs to.
        graphs: how many.
        x: [nodes, d] features that colour the nodes at first.
        rounds: how many; 0 until stable.

    Returns:
        Colours [nodes] and graph colours [graphs], int64.
    """
    colours = feature_colours(x, len(graph))
    classes = len(colours.unique())
    sizes = torch.bincount(graph, minlength=1)
    for _ in range(rounds or max(int(sizes.max()), 1)):
        colours = refine(colours, edge_index)
        now = len(colours.unique())
        if not rounds and now == classes:
            break
        classes = now
    # With rounds = 0 their number depends on what else is there: such colours are not compared between calls.
    return colours, graph_colours(colours, graph, graphs)


def partition(values: Tensor, tolerance: float) -> Tensor:
    """[n] int64 groups of rows of ``values`` [n, d] that are equal to within ``tolerance`` of the largest entry.

    Rows are sorted along a fixed direction and then compared with their neighbours, so that a pair is not parted by a
    grid; n log n.
    """
    scale = float(values.abs().max()) or 1.0
    direction = torch.sin(torch.arange(values.shape[1], dtype=torch.float64) * 1.7 + 0.6)
    order = torch.argsort(values.double() @ direction)
    rows = values.double()[order]
    apart = (rows[1:] - rows[:-1]).abs().amax(1) > tolerance * scale
    group = torch.zeros(len(values), dtype=torch.long)
    group[order[1:]] = apart.long().cumsum(0)
    return group


__all__ = ["feature_colours", "graph_colours", "partition", "refine", "weisfeiler_leman"]
