"""Shortest tours against every tour, and the graphs made of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from microtome.data.travelling_salesman import shortest_tours, tour_graphs
from microtome.errors import UsageError

pytest.importorskip("torch_geometric")


def _length(points, tour):
    return float(np.linalg.norm(points[tour] - points[np.roll(tour, -1)], axis=1).sum())


@pytest.mark.parametrize("cities", [3, 4, 7])
def test_no_tour_is_shorter(cities):
    points = np.random.RandomState(cities).rand(5, cities, 2)
    for own, tour in zip(points, shortest_tours(points), strict=True):
        assert sorted(tour.tolist()) == list(range(cities)) and tour[0] == 0
        every = [np.array((0, *rest)) for rest in itertools.permutations(range(1, cities))]
        assert _length(own, tour) == pytest.approx(min(_length(own, t) for t in every))


def test_a_ring_of_cities_is_its_own_tour():
    angle = 2 * np.pi * np.random.RandomState(0).permutation(12) / 12
    points = np.stack([np.cos(angle), np.sin(angle)], 1)
    assert _length(points, shortest_tours(points[None])[0]) == pytest.approx(24 * np.sin(np.pi / 12))
    with pytest.raises(UsageError, match="MT514"):
        shortest_tours(np.zeros((1, 15, 2)))


def test_every_city_has_two_edges_on_the_tour():
    for graph in tour_graphs(20, cities=9, neighbours=5, seed=1):
        on = graph.edge_index[:, graph.y > 0]
        assert int(graph.y.sum()) + 2 * graph.missed == 18
        assert torch.bincount(on[0], minlength=9).le(2).all()
        dense = torch.zeros(9, 9).index_put(tuple(graph.edge_index), graph.y + 1.0)
        assert torch.equal(dense, dense.T)
        distance = torch.cdist(graph.x, graph.x)
        for a, b, near in zip(*graph.edge_index.tolist(), graph.nearest.tolist(), strict=True):
            places = [int((distance[i] < distance[a, b] - 1e-7).sum()) for i in (a, b)]
            assert min(places) <= 5 and (min(places) <= 2) == bool(near)
