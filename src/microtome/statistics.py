"""Intervals: the few that instruments share, over scipy. Torch-free values in, floats out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def wilson(hits: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a share (Wilson 1927)."""
    from scipy.stats import binomtest

    interval = binomtest(hits, total).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def student(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of independent values and Student's interval: (mean, low, high); a single value has no interval."""
    from scipy.stats import t

    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if array.size < 2:
        return mean, mean, mean
    half = float(t.ppf(0.5 + confidence / 2, array.size - 1) * array.std(ddof=1) / math.sqrt(array.size))
    return mean, mean - half, mean + half


def normal(mean: float, standard_error: float, confidence: float = 0.95) -> tuple[float, float]:
    """Normal interval around an estimate with a known standard error."""
    from scipy.special import ndtri

    half = float(ndtri(0.5 + confidence / 2)) * standard_error
    return mean - half, mean + half
