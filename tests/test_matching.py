"""Matching of units: copies that are permuted, rotated, mixed, or have nothing in common."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from microtome.errors import UsageError
from microtome.population import Population
from microtome.population.matching import (
    bipartite_matching,
    semi_matching,
    sparse_prediction,
    spectral_clusters,
    subspace_overlap,
    unit_correlation,
)
from microtome.population.slices import cut, rows

DRAW = torch.Generator().manual_seed(2)
A = torch.randn(300, 8, generator=DRAW)
ORDER = torch.tensor([3, 1, 0, 7, 2, 6, 5, 4])


def test_correlation_is_numpys_and_dead_units_have_none():
    b = torch.cat([A[:, :3] * -2 + 1, torch.full((300, 1), 0.3)], 1)
    found = unit_correlation(A, b)
    expected = np.corrcoef(A.T.numpy(), b[:, :3].T.numpy())[:8, 8:]
    np.testing.assert_allclose(found[:, :3], expected, atol=1e-6)
    assert not found[:, 3].any()


def test_a_permuted_copy_is_matched_unit_by_unit():
    scaled = A[:, ORDER] * torch.rand(8, generator=DRAW) + 1
    for match in (semi_matching, bipartite_matching):
        column, value = match(unit_correlation(A, scaled))
        assert torch.equal(ORDER[column], torch.arange(8))
        assert torch.allclose(value, torch.ones(8, dtype=value.dtype))


def test_bipartite_gives_up_a_pair_for_the_total():
    correlation = torch.tensor([[0.9, 0.8], [0.8, 0.1]])
    assert semi_matching(correlation)[0].tolist() == [0, 0]
    assert bipartite_matching(correlation)[0].tolist() == [1, 0]


def test_a_rotated_copy_has_the_subspace_and_not_the_units():
    wide = torch.cat([A, torch.randn(300, 8, generator=DRAW) * 1e-3], 1)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=DRAW))[0]
    assert subspace_overlap(wide, wide @ turn, 8) == pytest.approx(1, abs=1e-5)
    assert bipartite_matching(unit_correlation(wide, wide @ turn))[1].mean() < 0.7
    assert subspace_overlap(A, torch.randn(300, 8, generator=DRAW), 8) == pytest.approx(8 / 300, abs=0.03)


def test_a_unit_made_of_two_needs_two():
    b = torch.stack([A[:, 0] + A[:, 5] + 3, A[:, 2] * 2, torch.zeros(300)], 1)
    r2 = sparse_prediction(A, b, [1, 2, 8])
    assert 0.3 < r2[0, 0] < 0.7
    assert torch.allclose(r2[1:, 0], torch.ones(2, dtype=r2.dtype)) and torch.allclose(
        r2[:, 1], torch.ones(3, dtype=r2.dtype)
    )
    assert not r2[:, 2].any()


def test_all_predictors_are_least_squares_also_held_out():
    b = A[:, :3].square() + A[:, 1:4]
    halves = (A[:150], b[:150]), (A[150:], b[150:])
    r2 = sparse_prediction(*halves[0], [3, 8], held_out=halves[1])
    design = torch.cat([A, torch.ones(300, 1)], 1).double()
    fitted = design[150:] @ torch.linalg.lstsq(design[:150], b[:150].double()).solution
    truth = b[150:].double()
    expected = 1 - (truth - fitted).square().sum(0) / (truth - truth.mean(0)).square().sum(0)
    assert torch.allclose(r2[1], expected, atol=1e-5)


def test_planted_groups_are_found():
    groups = torch.arange(12) % 3
    similarity = (groups[:, None] == groups).double() * 0.9 + 0.02
    found = spectral_clusters(similarity, 3)
    assert all(len(found[groups == g].unique()) == 1 for g in range(3)) and len(found.unique()) == 3


def test_a_cut_population_goes_on_where_the_first_ended():
    build = lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))  # noqa: E731
    population = Population.of(build, range(3))
    x = torch.rand(5, 1, 4, 4, generator=DRAW)
    middle = cut(population, 0, 2).predict(x)
    assert torch.equal(middle[1], population.member(1)[:2](x))
    assert torch.allclose(cut(population, 2).predict(middle, private=True), population.predict(x))
    assert rows(middle).shape == (3, 20, 2) and torch.equal(rows(middle)[0, :4, 1], middle[0, 0, 1].flatten())

    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 2)

    with pytest.raises(UsageError, match="MT494 Other has no layers"):
        cut(Population.of(Other, [0]))
