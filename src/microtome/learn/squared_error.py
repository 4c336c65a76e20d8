"""Squared error as the theory of gradient descent writes it: half, summed over outputs, mean over examples."""

from __future__ import annotations

from torch import Tensor


def half_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over examples of |f - y|^2 / 2; [n, k] and [n, k] -> scalar. Its gradient in f is (f - y) / n."""
    return 0.5 * (outputs - targets).square().sum(-1).mean()


__all__ = ["half_squared_error"]
