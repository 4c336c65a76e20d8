"""E f(u) f(v) and E f'(u) f'(v) of jointly Gaussian u and v: what an activation makes of a kernel.

Closed forms for functions linear on both sides of 0 (ReLU, leaky ReLU, |x|: the arc-cosine kernel of Cho & Saul 2009)
and for erf (Williams 1997); quadrature for all others, whose error :mod:`microtome.interpret.gaussian` states.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from microtome.interpret.gaussian import Nonlinearity, pair_mean


def dual(f: Nonlinearity, first: Tensor, second: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """(E f f, E f' f'), for variances and covariances [m] in float64."""
    scale = (first * second).sqrt()
    c = torch.where(scale > 0, covariance / scale.clamp(min=1e-300), 1.0).clamp(-1, 1)
    sides = two_slopes(f)
    if sides is not None:
        return _two_sided(*sides, scale, c)
    if f.name == "erf":
        a = (1 + 2 * first) * (1 + 2 * second)
        k = c * scale
        return 2 / math.pi * (2 * k / a.sqrt()).asin(), 4 / math.pi * (a - 4 * k.square()).rsqrt()
    return (
        pair_mean(f.value, first, second, c, f.kinks),
        pair_mean(f.slope, first, second, c, f.kinks),
    )


def two_slopes(f: Nonlinearity) -> tuple[float, float] | None:
    """The slopes on both sides of 0 of a function that is linear there, None for others."""
    x = torch.tensor([0.01, 0.5, 1.0, 3.0, 50.0], dtype=torch.float64)
    right, left = f.value(x) / x, f.value(-x) / -x
    if (
        f.kinks not in ((), (0.0,))
        or float((right - right[2]).abs().max() + (left - left[2]).abs().max()) > 1e-12
    ):
        return None
    return float(right[2]), float(left[2])


def _two_sided(right: float, left: float, scale: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """f(x) = p x + m |x|: E u |v| is 0, and E |u| |v| and E sgn(u) sgn(v) are known."""
    p, m = (right + left) / 2, (right - left) / 2
    angle = c.acos()
    even = 2 / math.pi * ((1 - c * c).clamp(min=0).sqrt() + (math.pi / 2 - angle) * c)
    return scale * (p * p * c + m * m * even), p * p + m * m * (1 - 2 * angle / math.pi)
