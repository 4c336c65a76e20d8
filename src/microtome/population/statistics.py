"""What a sample of trained networks says: paired differences, effect sizes, and how far runs vary and why.

Values of members come as arrays [N]; outcomes as ``correct`` [N, n], whether member i answered example j correctly
(:meth:`microtome.population.Recording.correct` gives one such table a step).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from microtome.errors import UsageError
from microtome.statistics import holm, student

Values = np.ndarray | Tensor | list[float]


@dataclass(frozen=True)
class PairedDifference:
    """How much larger the first of two paired samples is.

    Attributes:
        mean: of a - b.
        low, high: Student's interval of the mean.
        bootstrap_low, bootstrap_high: percentiles of the mean of resampled pairs; too narrow below about ten pairs.
        p: two-sided, of the paired t-test.
        effect: Cohen's d of the differences; None when they do not vary.
        count: pairs.
    """

    mean: float
    low: float
    high: float
    bootstrap_low: float
    bootstrap_high: float
    p: float
    effect: float | None
    count: int


def _array(values: Values) -> np.ndarray:
    taken = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    return taken.astype(np.float64)


def _differences(a: Values, b: Values) -> np.ndarray:
    one, two = _array(a), _array(b)
    if one.shape != two.shape or one.ndim != 1 or len(one) < 2:
        raise UsageError(
            "MT490",
            f"samples {list(one.shape)} and {list(two.shape)} are not paired",
            fix="give two lists of equal length, at least 2, member by member",
        )
    return one - two


def paired_difference(
    a: Values, b: Values, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> PairedDifference:
    """Compare two settings that were run with the same seeds: [N] and [N], in the same order.

    t = mean / (s / sqrt(N)) with N - 1 degrees of freedom (Student 1908); the bootstrap draws pairs with replacement
    (Efron 1979). Pairing takes out what a seed does to both; without common seeds use two independent samples.
    """
    from scipy.special import stdtr

    d = _differences(a, b)
    mean, low, high = student(d, confidence)
    draws = np.random.default_rng(seed).integers(0, len(d), (resamples, len(d)))
    edges = np.quantile(d[draws].mean(1), [(1 - confidence) / 2, (1 + confidence) / 2])
    spread = float(d.std(ddof=1))
    if spread > 0:
        p = float(2 * stdtr(len(d) - 1, -abs(mean) / (spread / math.sqrt(len(d)))))
    else:
        p = 1.0 if mean == 0 else 0.0
    return PairedDifference(
        mean, low, high, float(edges[0]), float(edges[1]), p, cohen_d(a, b, paired=True), len(d)
    )


def cohen_d(a: Values, b: Values, *, paired: bool = False) -> float | None:
    """Difference of means in standard deviations (Cohen 1988); None when nothing varies.

    Independent samples [N], [M]: over the pooled standard deviation. Paired: mean of a - b over the standard
    deviation of a - b, which shrinks as pairs agree, so the two kinds do not compare. 0.2 is called small, 0.8 large.
    """
    if paired:
        d = _differences(a, b)
        spread = float(d.std(ddof=1))
        return float(d.mean()) / spread if spread > 0 else None
    one, two = _array(a), _array(b)
    free = len(one) + len(two) - 2
    squares = float(((one - one.mean()) ** 2).sum() + ((two - two.mean()) ** 2).sum())
    return float(one.mean() - two.mean()) / math.sqrt(squares / free) if free > 0 and squares > 0 else None


def bootstrap(
    statistic: Callable[..., float],
    *samples: Values,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """(value, low, high) of any statistic of samples [N, ...]: percentiles over redrawn samples.

    Each is redrawn along its first dimension, independently of the others (Efron 1979); give paired values as one
    sample [N, 2].
    """
    held = [_array(sample) for sample in samples]
    drawn = np.random.default_rng(seed)
    found = [statistic(*(s[drawn.integers(0, len(s), len(s))] for s in held)) for _ in range(resamples)]
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(statistic(*held)), float(low), float(high)


@dataclass(frozen=True)
class RunVariance:
    """Where the variance of accuracy between runs comes from.

    Attributes:
        accuracy: mean over runs.
        test_set: variance of accuracy between runs on these n examples.
        independent: what it would be if runs erred on each example independently: sum of p_j (1 - p_j) / n^2.
        distribution: variance of accuracy on the distribution the examples are a sample of: the mean covariance of two
            examples. Unbiased, so it may come out below 0.
    """

    accuracy: float
    test_set: float
    independent: float
    distribution: float

    @property
    def ratio(self) -> float:
        """Variance measured over variance of independent errors; 1 when the independence null holds."""
        return self.test_set / self.independent if self.independent > 0 else 1.0

    @property
    def share(self) -> float:
        """Part of the variance that would be left on endless test data."""
        return self.distribution / self.test_set if self.test_set > 0 else 0.0


def run_variance(correct: Tensor | np.ndarray) -> RunVariance:
    """Decompose the variance between runs of test accuracy (Jordan 2023): ``correct`` [N, n], N > 1, n > 1.

    With c_ij the outcome of run i on example j and a_i its accuracy,
    n^2 var(a) = sum_j var(c_j) + sum_{j != k} cov(c_j, c_k). The first sum over n^2 is the independence null; the
    second over n (n - 1) estimates the variance over the distribution without bias. It is the mean, over all ways to
    halve the test set, of the covariance between runs of the two halves' accuracies.
    """
    c = _array(correct)
    if c.ndim != 2 or min(c.shape) < 2:
        raise UsageError(
            "MT491", f"outcomes {list(c.shape)} are no runs x examples", fix="give [N, n], both above 1"
        )
    n = c.shape[1]
    total = float(c.mean(1).var(ddof=1))
    own = float(c.var(0, ddof=1).sum())
    return RunVariance(float(c.mean()), total, own / n**2, (n * n * total - own) / (n * (n - 1)))


def calibrated_variance(answers: Tensor, classes: int) -> tuple[float, float]:
    """(error, variance of accuracy between runs) that follow if the runs' votes are calibrated: ``answers`` [N, n].

    If among examples where a share q_j of runs answers j a share q_j has label j, then a run errs with probability
    1 - sum_j q_j^2 (which is how often two runs disagree), and independent runs vary by sum over examples of
    sum_j q_j^2 (1 - q_j), over n^2; for two classes that is error / (2n) (Jordan 2023). No label is needed.
    """
    shares = torch.stack([(answers == j).double().mean(0) for j in range(classes)], -1)  # [n, k]
    error = float((1 - shares.square().sum(-1)).mean())
    return error, float((shares.square() * (1 - shares)).sum()) / shares.shape[0] ** 2


def shared_outcomes(correct: Tensor | np.ndarray) -> tuple[float, float]:
    """(observed, independent) variance over examples of the share of members that are right: ``correct`` [N, n].

    If members with these accuracies a_i chose independently which examples to get right, the share would vary by
    sum_i a_i (1 - a_i) / N^2 (both estimates are unbiased). Observed / independent is 1 then, and N when all members
    get the same examples right (Hacohen, Choshen & Weinshall 2020).
    """
    c = _array(correct)
    members, n = c.shape
    a = c.mean(1)
    return float(c.mean(0).var(ddof=1)), float((a * (1 - a)).sum() / members**2 * n / (n - 1))


__all__ = [
    "PairedDifference",
    "RunVariance",
    "bootstrap",
    "calibrated_variance",
    "cohen_d",
    "holm",
    "paired_difference",
    "run_variance",
    "shared_outcomes",
]
