"""Gradient descent in the space of functions: a kernel drives it, squared error makes it linear (Jacot et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor


def kernel_descent(
    kernel: Tensor, start: Tensor, targets: Tensor, steps: Tensor, *, rate: float, cross: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """(answers at training points [t, n], and at others [t, m]) after numbers of full-batch steps.

    f_t = y - (I - rate K / n)^t (y - f_0), and elsewhere f_0 + K_* K^-1 (I - (I - rate K / n)^t)(y - f_0): what a
    network of constant tangent kernel does under half squared error. Exact for steps of a finite rate, by the
    eigenvectors of K.

    Args:
        kernel: [n, n] of the training points; of float64 for many steps.
        start: [n + m] first answers, training points first; [n] without ``cross``.
        targets: [n].
        steps: [t] numbers of steps.
        rate: learning rate.
        cross: [m, n] kernel between other points and those of training.
    """
    n = len(kernel)
    values, vectors = torch.linalg.eigh(kernel)
    left = vectors.T @ (targets - start[:n])
    keep = (1 - rate * values / n)[None] ** steps.to(values)[:, None]  # [t, n]
    own = targets - (keep * left) @ vectors.T
    if cross is None:
        return own, None
    # (1 - keep) / value, whose limit for a value of 0 is rate t / n: nothing is divided by 0
    tiny = values.abs() < 1e-12 * values.abs().max()
    gained = torch.where(
        tiny,
        rate * steps.to(values)[:, None] / n,
        (1 - keep) / torch.where(tiny, torch.ones_like(values), values),
    )
    return own, start[n:] + (gained * left) @ vectors.T @ cross.T


def decay_rates(residuals: Tensor, vectors: Tensor, *, floor: float = 1e-2) -> Tensor:
    """[m] how fast the residual falls along each of m directions, by step: the slope of its logarithm through 0.

    Args:
        residuals: [t, n] targets less answers after steps 0 ... t - 1.
        vectors: [n, m] directions.
        floor: only while the share left is above this, for below it others leak in; at least two steps.
    """
    left = ((residuals @ vectors).abs() / (residuals[0] @ vectors).abs().clamp(min=1e-30)).clamp(min=1e-30)
    steps = torch.arange(len(left), dtype=left.dtype)[:, None]
    used = ((left >= floor).to(left).cumprod(0) > 0) | (steps < 2)
    weight = torch.where(used, steps, torch.zeros_like(steps))
    return -(weight * left.log()).sum(0) / weight.square().sum(0)


__all__ = ["decay_rates", "kernel_descent"]
