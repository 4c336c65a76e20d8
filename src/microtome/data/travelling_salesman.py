"""Cities on a square and their shortest tours, exact: which edges does the tour take (Dwivedi et al. 2023)?"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import torch

from microtome.data.graphs import geometric
from microtome.errors import UsageError

MOST = 14
"""Cities a tour is found for: time and memory double with each."""


def shortest_tours(points: np.ndarray) -> np.ndarray:
    """The shortest round trip through the cities of each of many instances (Held & Karp 1962), exact.

    cost(S, last) = min over previous of cost(S without last, previous) + distance(previous, last), where S are the
    cities visited after the first; all instances at once, about 2^n n^2 steps each.

    Args:
        points: [instances, n, 2].

    Returns:
        [instances, n] cities in the order of the tour, the first is 0.

    Raises:
        UsageError: MT514 for fewer than 3 or more than 14 cities.
    """
    count, n = points.shape[:2]
    if not 3 <= n <= MOST:
        raise UsageError("MT514", f"tours are found for 3 to {MOST} cities, not {n}")
    distance = np.linalg.norm(points[:, :, None] - points[:, None], axis=-1)
    rest, full = n - 1, (1 << (n - 1)) - 1  # city c + 1 is bit c
    between, away = distance[:, 1:, 1:], distance[:, 0, 1:]
    cost = np.full((count, full + 1, rest), np.inf)
    came = np.zeros((count, full + 1, rest), dtype=np.int8)
    for last in range(rest):
        cost[:, 1 << last, last] = away[:, last]
    for size in range(2, n):
        sets = np.array([sum(1 << c for c in some) for some in combinations(range(rest), size)])
        for last in range(rest):
            own = sets[(sets >> last) & 1 == 1]
            ways = cost[:, own ^ (1 << last)] + between[:, None, :, last]
            came[:, own, last] = ways.argmin(-1)
            cost[:, own, last] = ways.min(-1)
    every, left = np.arange(count), np.full(count, full)
    city = (cost[:, full] + away).argmin(-1)
    tour = np.zeros((count, n), dtype=np.int64)
    for place in range(n - 1, 0, -1):
        tour[:, place] = city + 1
        previous = came[every, left, city]
        left, city = left ^ (1 << city), previous.astype(np.int64)
    return tour


def tour_graphs(count: int = 100, *, cities: int = 12, neighbours: int = 6, seed: int = 0) -> list[Any]:
    """Graphs of near cities whose edges are to be told as of the shortest tour or not.

    Args:
        count: instances, drawn uniformly from the unit square.
        cities: of each, 3 to 14.
        neighbours: an edge joins a city with each of so many nearest ones, in both directions.
        seed: of the cities.

    Returns:
        Graphs with x [n, 2] places, y [edges] 1 on the tour, ``nearest`` [edges] 1 where one end is among the two
        nearest of the other (the heuristic to beat), and ``missed``, how many edges of the tour join cities too far
        apart to be in the graph.

    Raises:
        UsageError: MT514 for more cities than can be solved exactly.
    """
    geometric()
    from torch_geometric.data import Data

    points = np.random.RandomState(seed).rand(count, cities, 2)
    tour = shortest_tours(points)
    every, following = np.arange(count)[:, None], np.roll(tour, -1, 1)
    taken = np.zeros((count, cities, cities), dtype=bool)
    taken[every, tour, following] = taken[every, following, tour] = True
    distance = np.linalg.norm(points[:, :, None] - points[:, None], axis=-1)
    rank = distance.argsort(-1).argsort(-1)  # 0 is the city itself
    rank = np.minimum(rank, rank.transpose(0, 2, 1))
    joined = (rank <= neighbours) & ~np.eye(cities, dtype=bool)
    found = []
    for own, on_tour, near, place in zip(joined, taken, rank, points, strict=True):
        pairs = np.stack(own.nonzero())
        found.append(
            Data(
                x=torch.from_numpy(place).float(),
                edge_index=torch.from_numpy(pairs),
                y=torch.from_numpy(on_tour[tuple(pairs)]).long(),
                nearest=torch.from_numpy(near[tuple(pairs)] <= 2).long(),
                missed=int((on_tour & ~own).sum()) // 2,
            )
        )
    return found


__all__ = ["MOST", "shortest_tours", "tour_graphs"]
