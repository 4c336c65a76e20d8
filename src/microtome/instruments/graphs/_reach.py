"""Sensitivities by hop distance and commute time, as a fixed number of numbers an example."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from microtome.graphs.resistance import adjacency, resistances, undirected
from microtome.signals import derive, rows
from microtome.signals.expression import Signal
from microtome.signals.graphs import sensitivity, structure, target_nodes
from microtome.signals.noise import row_uniform
from microtome.statistics import spearman
from microtome.structure import Structure

HOPS = 12
PER_HOP = 4
SPARSE = 30_000
"""Beyond this many nodes commute times are not solved for."""


def reach(layer: str, draws: int, seed: int) -> Signal:
    """[n, 2 (HOPS + 1) + 3 HOPS PER_HOP] of each example's node; read by :func:`by_distance` and :func:`pairs`."""
    return derive(
        _reach, sensitivity(layer, draws=draws, seed=seed), structure, rows, name="reach", seed=seed
    )


def by_distance(found: Tensor) -> Tensor:
    """[HOPS + 1, 2] summed squared norm and number of pairs at each hop distance."""
    return found[:, : 2 * (HOPS + 1)].reshape(-1, HOPS + 1, 2).sum(0)


def pairs(found: Tensor) -> np.ndarray:
    """[m, 3] log10 norm, hop distance and commute time (0: not known) of the chosen pairs."""
    cloud = found[:, 2 * (HOPS + 1) :].reshape(-1, 3).numpy()
    return cloud[cloud[:, 1] > 0]


def correlations(cloud: np.ndarray) -> tuple[float | None, float | None]:
    """Spearman of -log norm with commute time, and the partial one with the hop distance taken out."""
    cloud = cloud[cloud[:, 2] > 0]
    if len(cloud) < 8:
        return None, None
    weak, hops, commute = -cloud[:, 0], cloud[:, 1], cloud[:, 2]
    xy, xz, yz = spearman(weak, commute), spearman(weak, hops), spearman(commute, hops)
    if xy is None or xz is None or yz is None:
        return xy, xy
    left = (1 - xz**2) * (1 - yz**2)
    return xy, (xy - xz * yz) / left**0.5 if left > 1e-9 else None


def _reach(values: Tensor, structure: Structure, rows: Tensor, seed: int) -> Tensor:
    """[n, 2 (HOPS + 1) + 3 HOPS PER_HOP]: (sum, count) by distance, then (log10 norm, hops, commute) of pairs."""
    from scipy.sparse.csgraph import dijkstra

    targets, n = target_nodes(structure, rows, seed), len(values)
    graph = adjacency(structure.edge_index, structure.nodes)
    hops = torch.from_numpy(dijkstra(graph, unweighted=True, indices=targets.numpy(), limit=HOPS))
    profile = torch.zeros(n, HOPS + 1, 2, dtype=torch.double)
    pairs = torch.zeros(n, HOPS, PER_HOP, 3, dtype=torch.double)
    draw = row_uniform(structure.node_ids, seed + 23).expand(n, -1)
    chosen = torch.full((n, HOPS, PER_HOP), -1)
    for r in range(HOPS + 1):
        there = hops == r
        profile[:, r, 0] = torch.where(there, values, torch.zeros_like(values)).sum(1)
        profile[:, r, 1] = there.sum(1)
        if r:
            key = torch.where(there & (values > 0), draw, torch.full_like(draw, 2.0))
            low, at = key.topk(min(PER_HOP, structure.nodes), largest=False)
            chosen[:, r - 1, : at.shape[1]] = torch.where(low < 2, at, torch.full_like(at, -1))
    row, hop, _ = where = (chosen >= 0).nonzero(as_tuple=True)
    source = chosen[where]
    if len(source):
        commute = torch.zeros(len(source), dtype=torch.double)
        if structure.nodes <= SPARSE:
            ends = torch.stack([targets[row], source])
            own = structure.graph[undirected(structure.edge_index, structure.nodes)[0]]
            edges = torch.bincount(own, minlength=int(structure.graph.max()) + 1)
            commute = (
                2 * edges[structure.graph[source]] * resistances(structure.edge_index, structure.nodes, ends)
            )
        pairs[where] = torch.stack([values[row, source].log10() / 2, (hop + 1).double(), commute], 1)
    return torch.cat([profile.flatten(1), pairs.flatten(1)], 1)
