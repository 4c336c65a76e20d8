"""Steps of descent taken at once against a loop, the pseudo-inverse, peaks, wrong labels."""

from __future__ import annotations

import math

import pytest
import torch

from microtome.data.label_noise import wrong_labels
from microtome.learn.linear_descent import LinearDescent, peak_height
from microtome.nn.random_features import RandomFeatures


@pytest.mark.parametrize("width", [4, 12])
def test_against_a_loop_and_the_pseudo_inverse(width):
    torch.manual_seed(0)
    x, y, start = torch.randn(7, width).double(), torch.randn(7, 2).double(), torch.randn(width, 2).double()
    descent = LinearDescent(x, y, start)
    rate, w = 0.5 / descent.top, start.clone()
    many = descent.weights(rate, [0, 3, 10])
    for step in range(11):
        if step in (0, 3, 10):
            assert torch.allclose(many[(0, 3, 10).index(step)], w)
            assert descent.loss(rate, step) == pytest.approx(float((x @ w - y).square().sum() / 14), rel=1e-9)
        w = w - rate * x.T @ (x @ w - y) / 7
    end = LinearDescent(x, y).weights(rate, [math.inf])[0]
    assert torch.allclose(end, torch.linalg.pinv(x) @ y)
    values = torch.linalg.svdvals(x)
    assert descent.condition == pytest.approx(float((values[0] / values[-1]) ** 2))


def test_steps_needed():
    torch.manual_seed(0)
    descent = LinearDescent(torch.randn(9, 5).double(), torch.randn(9, 1).double())
    rate = 1 / descent.top
    needed = int(descent.steps_needed(rate, 1e-3))
    floor = descent.loss(rate, math.inf)
    share = [
        (descent.loss(rate, t) - floor) / (descent.loss(rate, 0) - floor)
        for t in (needed, int(0.97 * needed) - 1)
    ]
    assert share[0] <= 1e-3 < share[1]


def test_peaks():
    widths = [10, 50, 100, 200, 1000]
    errors = torch.tensor([[0.5, 0.3, 0.9, 0.4, 0.2], [0.5, 0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4, 0.5]])
    assert torch.allclose(peak_height(widths, errors, 100), torch.tensor([0.6, -0.1, -0.1]))


def test_wrong_labels():
    y = torch.arange(500) % 10
    noisy, chosen = wrong_labels(y, 0.2, 10, seed=3)
    assert chosen.sum() == 100 and torch.equal(noisy != y, chosen) and set(noisy.tolist()) <= set(range(10))
    assert len((noisy - y)[chosen].remainder(10).unique()) == 9


def test_random_features_are_drawn_once_and_never_trained():
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    model = RandomFeatures(6, 4000, seed=1)
    found = model(x)
    assert not list(model.parameters()) and torch.equal(found, RandomFeatures(6, 4000, seed=1)(x))
    assert torch.allclose(
        found.square().sum(1), x.square().sum(1) / 2, rtol=0.2
    )  # half of the mean square is cut off
