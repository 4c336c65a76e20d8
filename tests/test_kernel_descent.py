"""Kernel descent against descent on features, and decay along directions that decay as told."""

from __future__ import annotations

import torch

from microtome.learn.kernel_descent import decay_rates, kernel_descent


def test_it_is_descent_on_the_features_of_the_kernel():
    torch.manual_seed(0)
    for width in (9, 3):  # more and fewer features than examples
        x, other, y = (
            torch.randn(5, width).double(),
            torch.randn(4, width).double(),
            torch.randn(5).double(),
        )
        w = torch.randn(width).double()
        start = torch.cat([x, other]) @ w
        own, elsewhere = kernel_descent(
            x @ x.T, start, y, torch.tensor([0, 1, 40]), rate=0.05, cross=other @ x.T
        )
        for step in range(41):
            for place, t in enumerate((0, 1, 40)):
                if step == t:
                    assert torch.allclose(own[place], x @ w) and torch.allclose(elsewhere[place], other @ w)
            w = w - 0.05 * x.T @ (x @ w - y) / 5
    assert kernel_descent(x @ x.T, start[:5], y, torch.tensor([1]), rate=0.1)[1] is None


def test_decay_rates_are_read_back():
    rates = torch.tensor([0.5, 0.1, 0.01], dtype=torch.float64)
    vectors = torch.linalg.qr(torch.randn(6, 3, dtype=torch.float64))[0]
    residuals = torch.exp(-rates * torch.arange(50, dtype=torch.float64)[:, None]) @ vectors.T
    assert torch.allclose(decay_rates(residuals, vectors), rates)
