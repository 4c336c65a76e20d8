"""How labels lie on edges: the homophily family, label informativeness, twins. Exact, from counts alone.

Every measure is a function of the class-to-class edge counts C [k, k] (both directions of an undirected edge counted)
and of the nodes' degrees, so that counts of several graphs, or of parts of one, may be added first.
"""

from __future__ import annotations

import torch
from torch import Tensor


def class_edges(edge_index: Tensor, labels: Tensor, classes: int) -> Tensor:
    """[k, k] float64: edges from a node of the row's class to one of the column's; loops are left out.

    Args:
        edge_index: [2, edges].
        labels: [nodes] int64.
        classes: k.
    """
    source, target = edge_index
    kept = source != target
    pairs = labels[target[kept]] * classes + labels[source[kept]]
    return torch.bincount(pairs, minlength=classes * classes).double().reshape(classes, classes)


def edge_homophily(counts: Tensor) -> float:
    """Share of edges that join nodes of one class."""
    return float(counts.diagonal().sum() / counts.sum().clamp_min(1))


def adjusted_homophily(counts: Tensor) -> float | None:
    """Edge homophily less what the classes' degrees give by chance, as a share of the most there can be beyond it.

    h_adj = (h_edge - sum_c p_c^2) / (1 - sum_c p_c^2), p_c the share of edge ends at class c (Platonov et al. 2023).
    None when all edge ends are of one class.
    """
    ends = counts.sum(1) + counts.sum(0)
    chance = float((ends / ends.sum().clamp_min(1)).square().sum())
    return None if chance >= 1 - 1e-12 else (edge_homophily(counts) - chance) / (1 - chance)


def class_homophily(counts: Tensor, sizes: Tensor) -> float:
    """Mean over classes of max(0, h_c - n_c / n), times k / (k - 1): the insensitive measure (Lim et al. 2021).

    Args:
        counts: [k, k] class-to-class edges.
        sizes: [k] nodes of each class.
    """
    present = counts.sum(1) > 0
    own = counts.diagonal() / counts.sum(1).clamp_min(1)
    excess = (own - sizes.double() / sizes.sum().clamp_min(1)).clamp_min(0)
    return float(excess[present].sum() / max(len(sizes) - 1, 1))


def label_informativeness(counts: Tensor) -> float | None:
    """I(y_u; y_v) / H(y_u) over a random edge: what a neighbour's label tells, 0..1 (Platonov et al. 2023).

    None when all edge ends are of one class.
    """
    joint = (counts + counts.T) / (2 * counts.sum().clamp_min(1))
    ends = joint.sum(1)
    entropy = -float(torch.xlogy(ends, ends).sum())
    if entropy <= 1e-12:
        return None
    mutual = float(torch.xlogy(joint, joint).sum()) + 2 * entropy
    return max(mutual, 0.0) / entropy


def profile_similarity(profiles: Tensor) -> tuple[float, float]:
    """How alike the neighbour-label profiles of two classes are, and how apart: (mean cosine, least distance).

    Args:
        profiles: [c, k] rows are distributions over the neighbours' classes, one a class that has neighbours.

    Returns:
        Mean cosine over pairs of classes, and the smallest total variation distance of any two.
    """
    unit = torch.nn.functional.normalize(profiles.double(), dim=1)
    i, j = torch.triu_indices(len(profiles), len(profiles), 1)
    if not len(i):
        return 1.0, 0.0
    gap = (profiles[i] - profiles[j]).abs().sum(1) / 2
    return float((unit[i] * unit[j]).sum(1).mean()), float(gap.min())


def neighbourhood_hash(edge_index: Tensor, nodes: int, ids: Tensor | None = None) -> Tensor:
    """[nodes] int64 that are equal exactly for nodes with the same set of in-neighbours (but for hash collisions).

    Nodes without neighbours all get 0. A loop counts as nothing.

    Args:
        edge_index: [2, edges], each edge once.
        nodes: how many.
        ids: [nodes] names of the nodes; positions by default.
    """
    source, target = edge_index
    kept = source != target
    source, target = source[kept], target[kept]
    own = mix(torch.arange(nodes, device=source.device) if ids is None else ids)
    return torch.zeros(nodes, dtype=torch.long, device=source.device).index_add_(0, target, own[source])


def mix(value: Tensor) -> Tensor:
    """A bijection of int64 that scatters every bit (the finaliser of splitmix64)."""
    value = value * -0x61C8864680B583EB + 0x1E3779B97F4A7C15
    for multiplier, shift in ((-0x40A7B892E31B1A47, 30), (-0x6B2FB644ECCEEE15, 27)):
        value = (value ^ ((value >> shift) & ((1 << (64 - shift)) - 1))) * multiplier
    return value ^ ((value >> 31) & ((1 << 33) - 1))


def twins(edge_index: Tensor, labels: Tensor, nodes: int, ids: Tensor | None = None) -> Tensor:
    """[nodes] int64, the group of nodes with the same non-empty neighbourhood and label; -1 for nodes alone.

    Duplicates of this kind carry training labels into the test set (Platonov et al. 2023).
    """
    key = neighbourhood_hash(edge_index, nodes, ids)
    degree = torch.bincount(edge_index[1][edge_index[0] != edge_index[1]], minlength=nodes)
    joint = mix(key) + mix(labels)
    _, group, count = torch.unique(joint, return_inverse=True, return_counts=True)
    return torch.where((degree > 0) & (count[group] > 1), group, torch.full_like(group, -1))


def without_twins(edge_index: Tensor, group: Tensor) -> Tensor:
    """[nodes] bool, one node of each group of twins and all others; for ``Data.subgraph``."""
    first = torch.full((int(group.max().clamp_min(0)) + 1,), len(group))
    place = torch.arange(len(group))
    inside = group >= 0
    first = first.scatter_reduce(0, group[inside], place[inside], "amin")
    kept = ~inside
    kept[first[first < len(group)]] = True
    return kept


__all__ = [
    "adjusted_homophily", "class_edges", "class_homophily", "edge_homophily", "label_informativeness", "mix",
    "neighbourhood_hash", "profile_similarity", "twins", "without_twins",
]  # fmt: skip
