"""Stitching and similarity: maps that are known, and networks that must work as before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from microtome.errors import UsageError
from microtome.learn.stitching import Stitched, affine_map
from microtome.population import Population, Recipe, train
from microtome.population.similarity import linear_cka, mean_cca, procrustes_similarity, variance_explained

DRAW = torch.Generator().manual_seed(6)
A = torch.randn(200, 6, generator=DRAW)
TURN = torch.linalg.qr(torch.randn(6, 6, generator=DRAW))[0]


def error(weight, bias, a, b):
    return float((a @ weight.T + bias - b).norm() / b.norm())


def test_each_kind_finds_its_own_map():
    shift = torch.arange(6.0)
    for b in (A @ torch.randn(6, 4, generator=DRAW) + 2, A @ TURN + shift):
        assert error(*affine_map(A, b), A, b) < 1e-4
    assert error(*affine_map(A, A @ TURN + shift, "orthogonal"), A, A @ TURN + shift) < 1e-5
    order = torch.tensor([2, 0, 1, 5, 3, 4])
    b = A[:, order] * torch.tensor([1.0, 2, 3, 4, 5, 6]) + shift
    weight, bias = affine_map(A, b, "permutation")
    assert error(weight, bias, A, b) < 1e-5
    assert (weight != 0).sum() == 6


def test_reduced_rank_is_the_best_of_its_rank():
    b = A @ torch.randn(6, 5, generator=DRAW) + 0.3 * torch.randn(200, 5, generator=DRAW)
    weight, bias = affine_map(A, b, rank=2)
    assert torch.linalg.matrix_rank(weight, atol=1e-5) == 2
    best = error(weight, bias, A, b)
    for _ in range(50):
        other = weight + 0.01 * torch.randn(5, 2, generator=DRAW) @ torch.randn(2, 6, generator=DRAW)
        u, s, vh = torch.linalg.svd(other, full_matrices=False)
        assert error((u[:, :2] * s[:2]) @ vh[:2], bias, A, b) >= best - 1e-6
    assert error(*affine_map(A, b, rank=5), A, b) == pytest.approx(error(*affine_map(A, b), A, b), abs=1e-6)


def test_a_network_stitched_to_itself_is_itself_and_only_the_map_learns():
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    x = torch.randn(40, 1, 4, 4, generator=DRAW)
    middle = network[:2](x)
    stitched = Stitched(network[:2], network[2:], *affine_map(middle, middle))
    assert torch.allclose(stitched(x), network(x), atol=1e-4)
    population = Population([stitched, stitched])
    assert set(population.parameters) == {"weight", "bias"}
    before = {k: v.clone() for k, v in population.buffers.items()}
    train(population, x, torch.arange(40) % 2, Recipe(rate=0.1, steps=5))
    assert all(torch.equal(v, population.buffers[k]) for k, v in before.items())
    assert not torch.equal(population.parameters["weight"][0], stitched.weight)


@pytest.mark.parametrize("index", [linear_cka, mean_cca, procrustes_similarity])
def test_indices_know_rotations_and_unrelated_data(index):
    assert index(A, 3 * A @ TURN + 1) == pytest.approx(1)
    assert index(A, torch.randn(200, 6, generator=DRAW)) < 0.3
    stretched = index(A, A * torch.tensor([1.0, 1, 1, 1, 1, 30]))
    assert stretched == pytest.approx(1) if index is mean_cca else stretched < 0.8


def test_cca_is_the_closed_form_of_one_direction():
    a, b = A[:, :1], A[:, :1] + torch.randn(200, 1, generator=DRAW)
    expected = torch.corrcoef(torch.cat([a, b], 1).T.double())[0, 1] ** 2
    assert mean_cca(a, b) == pytest.approx(float(expected))
    assert variance_explained(A, A) == 1 and variance_explained(A.mean(0).expand(200, 6), A) == pytest.approx(
        0, abs=1e-6
    )


def test_wrong_requests():
    with pytest.raises(UsageError, match=r"MT495 .*did you mean 'orthogonal'"):
        affine_map(A, A, "orthogonl")
    with pytest.raises(UsageError, match="MT495 a rank is of a least-squares map"):
        affine_map(A, A, "orthogonal", rank=2)
    with pytest.raises(UsageError, match="MT495 activations"):
        affine_map(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 2, 2))
