"""Training Jacobians against a quadratic loss, where they are a matrix power, and against two trainings."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from microtome.learn.flat import flat
from microtome.learn.training_jacobian import overlap, regions, training_jacobian


def test_a_quadratic_loss_has_a_matrix_power():
    torch.manual_seed(0)
    a = torch.randn(6, 6, dtype=torch.float64)
    h = a @ a.T
    end, jacobian = training_jacobian(
        lambda t: t @ h @ t / 2, torch.ones(6, dtype=torch.float64), rate=0.01, steps=5, at_once=4
    )
    power = torch.linalg.matrix_power(torch.eye(6, dtype=torch.float64) - 0.01 * h, 5)
    assert torch.allclose(jacobian, power) and torch.allclose(end, power.sum(1))


def test_against_two_trainings():
    torch.manual_seed(0)
    vector, call = flat(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double())
    x, y = torch.randn(20, 3, dtype=torch.float64), torch.randint(0, 2, (20,))

    def loss(theta):
        return F.cross_entropy(call(theta, x), y)

    end, jacobian = training_jacobian(loss, vector, rate=0.5, steps=30)
    d = 1e-6 * torch.randn_like(vector)
    moved = training_jacobian(loss, vector + d, rate=0.5, steps=30)[0] - end
    assert float((moved - jacobian @ d).norm() / moved.norm()) < 1e-4


def test_regions():
    torch.manual_seed(0)
    q = torch.linalg.qr(torch.randn(5, 5))[0]
    flip = torch.tensor([1.0, 1.0, 1.0, -1.0, 1.0])
    found = regions(q @ torch.diag(torch.tensor([20.0, 1.004, 1.0, 0.5, 0.2]) * flip) @ q.T)
    assert (
        found.chaotic.tolist() == [True] + [False] * 4 and found.stable.tolist() == [False] * 3 + [True] * 2
    )
    assert found.bulk.sum() == 2 and torch.allclose(found.alignment(), flip, atol=1e-5)


def test_overlap_of_the_same_of_nested_of_random_and_of_disjoint_subspaces():
    torch.manual_seed(0)
    q = torch.linalg.qr(torch.randn(200, 200))[0]
    other = torch.linalg.qr(torch.randn(200, 200))[0]
    assert overlap(q[:, :50], q[:, :50]) == pytest.approx(1, abs=1e-5)
    assert overlap(q[:, :50], q[:, :80]) == pytest.approx(1, abs=1e-5)
    assert overlap(q[:, :80], q[:, :50]) == pytest.approx((50 / 80 - 0.25) / 0.75, abs=1e-5)
    assert abs(overlap(q[:, :50], other[:, :80])) < 0.05
    assert overlap(q[:, :50], q[:, 50:100]) < 0
