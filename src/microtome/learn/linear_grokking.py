"""When a linear student of a linear teacher fits and when it generalises, in closed form (Levi, Beck & Bar-Sinai 2024).

Inputs are standard normal in d dimensions, N of them; the student S [d, k] starts apart from the teacher T and follows
the gradient of half the squared error plus decay / 2 times its squared norm. In an eigendirection of the sample
covariance of eigenvalue s, with a = exp(-(s + decay) t) and b = decay / (s + decay),

    S - T = a S(0) - (a + b (1 - a)) T,

and for large d the eigenvalues follow the law of Marchenko and Pastur, whose only parameter is d / N.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from microtome.errors import UsageError


def marchenko_pastur(ratio: float, points: int = 4_000) -> tuple[Tensor, Tensor]:
    """(values, weights) that integrate over the eigenvalues of a sample covariance of white data, ratio = d / N.

    The last value is 0, with the weight of the directions that no example spans, 1 - 1 / ratio, if there are any.
    """
    if ratio <= 0:
        raise UsageError("MT484", f"no data has {ratio} dimensions an example", fix="give d / N, above 0")
    angle = (torch.arange(points, dtype=torch.float64) + 0.5) * (math.pi / points)
    values = 1 + ratio + 2 * ratio**0.5 * angle.cos()
    weights = 2 * angle.sin().square() / (points * values)
    none = torch.tensor([max(1 - 1 / ratio, 0.0)], dtype=torch.float64)
    return torch.cat([values, torch.zeros(1, dtype=torch.float64)]), torch.cat([weights, none])


def expected_losses(
    times: Tensor, ratio: float, *, student: float = 1.0, teacher: float = 1.0, decay: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(on the examples, on fresh data) mean squared error of an output at times [t]; [t] and [t], float64.

    Args:
        times: updates times rate.
        ratio: d / N.
        student: mean squared norm of S(0) for one output; ``teacher`` that of T.
        decay: of the weights.
    """
    s, weight = marchenko_pastur(ratio)
    a = torch.exp(-times.double()[:, None] * (s + decay))
    b = decay / (s + decay) if decay else torch.zeros_like(s)
    square = student * a.square() + teacher * (a + b * (1 - a)).square()
    return (square * s) @ weight, square @ weight


def accuracy(loss: Tensor, threshold: float, outputs: int = 1) -> Tensor:
    """Share of examples whose squared error, a mean over outputs, is at most the threshold; errors are normal."""
    half = torch.tensor(outputs / 2, dtype=torch.float64)
    return torch.special.gammainc(half, half * threshold / loss.double().clamp(min=1e-300))


def crossing(times: Tensor, curve: Tensor, level: float) -> Tensor:
    """[...] time at which curves [t, ...] first rise to the level, between the two times around it; inf for never."""
    there = curve >= level
    at = there.double().argmax(0)
    before = (at - 1).clamp(min=0)
    low, high = curve.gather(0, before[None])[0], curve.gather(0, at[None])[0]
    share = ((level - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    found = times[before] + share * (times[at] - times[before])
    return torch.where(there.any(0), found, math.inf)


def grokking_times(
    ratio: float,
    threshold: float,
    *,
    outputs: int = 1,
    student: float = 1.0,
    teacher: float = 1.0,
    decay: float = 0.0,
    level: float = 0.95,
    horizon: float = 1e4,
) -> tuple[float, float]:
    """(fit, generalisation): times at which accuracy on the examples and on fresh data reaches the level; or inf."""
    times = torch.logspace(-2, math.log10(horizon), 400, dtype=torch.float64)
    losses = expected_losses(times, ratio, student=student, teacher=teacher, decay=decay)
    fit, general = (float(crossing(times, accuracy(each, threshold, outputs), level)) for each in losses)
    return fit, general


__all__ = ["accuracy", "crossing", "expected_losses", "grokking_times", "marchenko_pastur"]
