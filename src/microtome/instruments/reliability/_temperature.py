"""The temperature that makes logits likeliest."""

from __future__ import annotations

from torch import Tensor

from microtome.statistics import normal

HOTTEST = 100.0
"""Temperatures are sought between 1 / HOTTEST and HOTTEST."""


def best_temperature(z: Tensor, y: Tensor) -> tuple[float, float, float]:
    """T that minimises the mean negative log-likelihood of softmax(z / T), with its 95 % interval.

    Newton's method for b = 1 / T, in which the likelihood is convex, kept inside a shrinking bracket. The
    interval is the sandwich estimate for b, turned over.

    Args:
        z: [m, k] float64 logits.
        y: [m] classes.
    """
    true = z.gather(1, y[:, None])[:, 0]
    low, high, b = 1 / HOTTEST, HOTTEST, 1.0
    for _ in range(60):
        p = (z * b).softmax(1)
        mean = (p * z).sum(1)
        slope = mean - true
        bend = float(((z - mean[:, None]).square() * p).sum(1).mean())
        step = float(slope.mean())
        low, high = (low, b) if step > 0 else (b, high)
        following = b - step / bend if bend > 0 else b
        if not low < following < high:
            following = (low * high) ** 0.5
        if abs(following - b) <= 1e-10 * b:
            break
        b = following
    error = float(slope.square().mean().sqrt()) / (len(z) ** 0.5 * bend) if bend > 0 else 0.0
    reach = normal(b, error)
    return 1 / b, 1 / min(max(reach[1], b), HOTTEST), 1 / max(min(reach[0], b), 1 / HOTTEST)
