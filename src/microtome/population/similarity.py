"""How alike two networks' activations are, as one number: [n, d] and [n, e] on the same examples, in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def _centred(a: Tensor) -> Tensor:
    return a.double() - a.double().mean(0)


def linear_cka(a: Tensor, b: Tensor) -> float:
    """|A^T B|^2 / (|A^T A| |B^T B|), centred (Kornblith et al. 2019).

    In 0..1; invariant to rotation and common scale. Biased upwards when n is not many times d; the instrument
    ``represent/linear_cka`` is not.
    """
    x, y = _centred(a), _centred(b)
    scale = (x.T @ x).norm() * (y.T @ y).norm()
    return float((x.T @ y).square().sum() / scale.clamp(min=1e-300))


def mean_cca(a: Tensor, b: Tensor, *, kept: float = 1 - 1e-9) -> float:
    """Mean squared canonical correlation, over the smaller number of directions (Hotelling 1936).

    In 0..1; invariant to any invertible linear map, so directions of little variance count like the others. ``kept`` is
    the share of variance whose principal directions are taken.
    """
    bases = []
    for part in (_centred(a), _centred(b)):
        u, s, _ = torch.linalg.svd(part, full_matrices=False)
        share = s.square().cumsum(0) / s.square().sum().clamp(min=1e-300)
        bases.append(u[:, : int((share < kept).sum()) + 1])
    return float((bases[0].T @ bases[1]).square().sum() / min(b.shape[1] for b in bases))


def procrustes_similarity(a: Tensor, b: Tensor) -> float:
    """Nuclear norm of A^T B over |A| |B|, centred: 1 - d^2 / 2 of the distance left after the best rotation.

    In 0..1 (Ding, Denain & Steinhardt 2021); invariant to rotation and common scale.
    """
    x, y = _centred(a), _centred(b)
    scale = (x.norm() * y.norm()).clamp(min=1e-300)
    return float(torch.linalg.svdvals(x.T @ y).sum() / scale)


def variance_explained(predicted: Tensor, truth: Tensor) -> float:
    """1 - squared error over variance, summed over units; below 0 when the mean would be nearer."""
    return 1 - float((truth.double() - predicted.double()).square().sum() / _centred(truth).square().sum())


__all__ = ["linear_cka", "mean_cca", "procrustes_similarity", "variance_explained"]
