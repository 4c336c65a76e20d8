"""Regression from second moments."""

from __future__ import annotations

import torch
from torch import Tensor

from microtome.folds.stock import CovarianceResult


def ridge_map(x: CovarianceResult, means: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """Ridge regression on standardised units: [d + 1, t] weights of the raw units and, last, the intercept.

    Args:
        x: covariance of the units.
        means: [t] of what is predicted.
        cross: [d, t] covariance of units and what is predicted.
        ridge: added to every unit's variance of 1; units that do not vary get no weight.
    """
    variance = x.covariance.diagonal()
    floor = 1e-12 * (variance.max() + x.mean.square().max())
    scale = torch.where(variance > floor, variance.clamp_min(1e-300).rsqrt(), torch.zeros_like(variance))
    correlation = scale[:, None] * x.covariance * scale
    correlation.diagonal().add_(ridge)
    factor = torch.linalg.cholesky(correlation)
    weights = scale[:, None] * torch.cholesky_solve(scale[:, None] * cross, factor)
    return torch.cat([weights, (means - x.mean @ weights)[None]])
