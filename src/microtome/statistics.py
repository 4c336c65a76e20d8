"""Intervals and corrections: the few that instruments share, over scipy. Torch-free values in, floats out."""

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


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm, 1979): the k-th smallest of m, times m - k + 1."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def normal(mean: float, standard_error: float, confidence: float = 0.95) -> tuple[float, float]:
    """Normal interval around an estimate with a known standard error."""
    from scipy.special import ndtri

    half = float(ndtri(0.5 + confidence / 2)) * standard_error
    return mean - half, mean + half


def selective_risks(score: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Share of errors among the i most confident predictions, for i = 1 ... m; [..., m].

    Args:
        score: [m] or [s, m], larger is more confident. Predictions of one score come in random order: each
            counts with the mean error of its group, which is the expectation over orders.
        error: [m], 1 where the prediction is wrong.
    """
    ordered, sorted_score = _sorted_errors(score, error)
    starts = np.ones(ordered.shape, dtype=bool)
    starts[..., 1:] = sorted_score[..., 1:] != sorted_score[..., :-1]
    group = np.cumsum(starts.reshape(-1)) - 1
    means = np.bincount(group, ordered.reshape(-1)) / np.bincount(group)
    level = means[group].reshape(ordered.shape)
    return level.cumsum(-1) / np.arange(1, ordered.shape[-1] + 1)


def _sorted_errors(score: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-score, axis=-1, kind="stable")
    return np.asarray(error, dtype=np.float64)[order], np.take_along_axis(score, order, -1)


def aurc(score: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Area under the risk-coverage curve: the mean of :func:`selective_risks` over coverages; [...]."""
    return selective_risks(score, error).mean(-1)


def aurc_resamples(
    scores: np.ndarray, error: np.ndarray, count: int = 200, seed: int = 0, most: int = 1 << 21
) -> np.ndarray:
    """AURC of each of [s, m] scores on [count] weighted resamples of the predictions; [s, count].

    Poisson weights, the same for every score, so that differences are paired. Fewer resamples (20 at
    least) when ``count * m`` exceeds ``most``.
    """
    m = scores.shape[-1]
    count = max(min(count, most // max(m, 1)), 20)
    drawn = np.random.default_rng(seed)
    out = np.empty((len(scores), count))
    orders = [np.argsort(-score, kind="stable") for score in scores]
    step = max((1 << 17) // max(m, 1), 1)  # resamples at a time: memory does not grow with the predictions
    for start in range(0, count, step):
        weights = drawn.poisson(1.0, (min(step, count - start), m)).astype(np.float64)
        for i, order in enumerate(orders):
            taken = weights[:, order]
            above = taken.cumsum(1)
            risk = (taken * np.asarray(error, dtype=np.float64)[order]).cumsum(1) / np.maximum(above, 1)
            out[i, start : start + step] = (taken * risk).sum(1) / np.maximum(above[:, -1], 1)
    return out


def auroc(score: np.ndarray, positive: np.ndarray) -> float | None:
    """Chance that a positive scores above a negative, ties half (Mann & Whitney 1947); None without both."""
    _, group, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[group]
    chosen = np.asarray(positive, dtype=bool)
    p, q = int(chosen.sum()), int((~chosen).sum())
    return None if p == 0 or q == 0 else float((ranks[chosen].sum() - p * (p + 1) / 2) / (p * q))


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Rank correlation with mean ranks for ties; None when one side is constant."""
    ranks = []
    for values in (a, b):
        _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
        rank = (np.cumsum(counts) - (counts - 1) / 2)[group]
        ranks.append(rank - rank.mean())
    scale = math.sqrt(float((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float((ranks[0] * ranks[1]).sum() / scale) if scale > 0 else None
