"""The spectrum of a covariance, with what counts as zero."""

from __future__ import annotations

import torch
from torch import Tensor

from microtome.folds.stock import CovarianceResult


def zero_variance(of: CovarianceResult, dtype: torch.dtype) -> float:
    """Eigenvalues of the covariance up to this are rounding.

    numpy's rule for the rank of the centred [n, d] features, singular values beyond max(n, d) eps of the
    largest, written for their squares and never below what float64 sums can tell. A layer whose rows differ
    by less than the rounding of its own mean has no variance at all.
    """
    m = max(of.count, len(of.mean))
    eps = max((m * torch.finfo(dtype).eps) ** 2, m * torch.finfo(torch.float64).eps)
    total = float(of.covariance.diagonal().sum())
    return max(eps * total, (4 * torch.finfo(dtype).eps) ** 2 * float(of.mean.square().sum()))


def spectrum(of: CovarianceResult, dtype: torch.dtype) -> Tensor:
    """Eigenvalues of the covariance, largest first, on the CPU, rounding set to exactly 0."""
    values = torch.linalg.eigvalsh(of.covariance.cpu()).flip(0)
    return torch.where(values > zero_variance(of, dtype), values, torch.zeros_like(values))
