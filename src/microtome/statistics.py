"""Intervals: the few that instruments share, over scipy. Torch-free values in, floats out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def wilson(hits: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a share (Wilson 1927)."""
    from scipy.special import ndtri  # scipy.stats would take a second to import

    z = float(ndtri(0.5 + confidence / 2))
    centre = hits + z * z / 2
    half = z * math.sqrt(hits * (total - hits) / total + z * z / 4)
    scale = total + z * z
    return max((centre - half) / scale, 0.0), min((centre + half) / scale, 1.0)


def student(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of independent values and Student's interval: (mean, low, high); a single value has no interval."""
    from scipy.special import stdtrit

    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if array.size < 2:
        return mean, mean, mean
    half = float(stdtrit(array.size - 1, 0.5 + confidence / 2) * array.std(ddof=1) / math.sqrt(array.size))
    return mean, mean - half, mean + half


def normal(mean: float, standard_error: float, confidence: float = 0.95) -> tuple[float, float]:
    """Normal interval around an estimate with a known standard error."""
    from scipy.special import ndtri

    half = float(ndtri(0.5 + confidence / 2)) * standard_error
    return mean - half, mean + half
