"""The law of Marchenko and Pastur, and the curves of a linear student against drawn matrices."""

from __future__ import annotations

import math

import pytest
import torch

from microtome.errors import UsageError
from microtome.learn.linear_grokking import (
    accuracy,
    crossing,
    expected_losses,
    grokking_times,
    marchenko_pastur,
)


@pytest.mark.parametrize("ratio", [0.3, 1.0, 2.5])
def test_moments_of_the_law(ratio):
    """Mean 1, second moment 1 + ratio, third 1 + 3 ratio + ratio^2."""
    s, weight = marchenko_pastur(ratio)
    for power, moment in ((0, 1.0), (1, 1.0), (2, 1 + ratio), (3, 1 + 3 * ratio + ratio**2)):
        assert float((s**power) @ weight) == pytest.approx(moment, rel=1e-3)


@pytest.mark.parametrize(("ratio", "decay"), [(0.5, 0.0), (0.8, 0.01), (2.0, 0.05)])
def test_losses_are_those_of_a_drawn_sample(ratio, decay):
    torch.manual_seed(0)
    d = 500
    x = torch.randn(round(d / ratio), d, dtype=torch.float64)
    s, basis = torch.linalg.eigh(x.T @ x / len(x))
    start, teacher = 2.0**0.5 * torch.randn(d, 60).double() / d**0.5, torch.randn(d, 60).double() / d**0.5
    times = torch.tensor([0.0, 1.0, 5.0, 20.0], dtype=torch.float64)
    found = expected_losses(times, ratio, student=2.0, decay=decay)
    # Euler's steps of the flow, in the drawn eigenbasis.
    student, t, step = basis.T @ start, 0.0, 0.01
    teacher = basis.T @ teacher
    for i, until in enumerate(times.tolist()):
        while t < until - 1e-9:
            student = student - step * (s[:, None] * (student - teacher) + decay * student)
            t += step
        apart = (student - teacher).square().mean(1) * d
        assert float(found[0][i]) == pytest.approx(float((s * apart).mean()), rel=0.15)
        assert float(found[1][i]) == pytest.approx(float(apart.mean()), rel=0.15)


def test_accuracy_is_the_share_of_small_errors():
    torch.manual_seed(0)
    for outputs in (1, 7):
        error = (0.3 * torch.randn(200_000, outputs).square()).mean(1)
        share = float((error <= 0.2).double().mean())
        assert float(accuracy(torch.tensor(0.3), 0.2, outputs)) == pytest.approx(share, abs=0.005)


def test_crossings_lie_between_recorded_times():
    times = torch.tensor([0.0, 1.0, 3.0])
    curve = torch.tensor([[0.0, 0.0], [0.5, 0.1], [0.9, 0.2]])
    assert crossing(times, curve, 0.7).tolist() == [pytest.approx(2.0), math.inf]


def test_generalisation_comes_later_the_fewer_examples():
    gaps = [b - a for a, b in (grokking_times(r, 0.01) for r in (0.3, 0.6, 0.9))]
    assert gaps == sorted(gaps) and gaps[-1] > 5 * gaps[0]
    assert math.isinf(grokking_times(1.5, 0.01)[1])  # some directions are never seen


def test_no_ratio_below_zero():
    with pytest.raises(UsageError, match="MT484"):
        marchenko_pastur(0.0)
