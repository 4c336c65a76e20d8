"""How variances and correlations travel through a very wide random network, and where it neither forgets nor explodes.

A layer z' = W f(z) + b with W of independent entries of variance sigma_w^2 / fan-in and b of variance sigma_b^2. As
widths grow, every z becomes Gaussian, and two numbers say all about two inputs: the variance q of a unit, and the
correlation c of the two (Poole et al. 2016; Schoenholz et al. 2017):

- ``variance_map``     q' = sigma_w^2 E f(sqrt(q) x)^2 + sigma_b^2
- ``correlation_map``  c' = (sigma_w^2 E f(u) f(v) + sigma_b^2) / q,  u and v of variance q and correlation c
- ``chi``              chi_1 = sigma_w^2 E f'(sqrt(q) x)^2, by which a small difference, and a gradient, is multiplied

``fixed_point`` finds where both maps come to rest, ``edge_of_chaos`` the weights with chi_1 = 1 there (Hayou, Doucet &
Rousseau 2019). All means are quadratures in float64; see :mod:`microtome.interpret.gaussian` for their error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from microtome.errors import UsageError
from microtome.interpret.gaussian import Nonlinearity, mean, nonlinearity, pair_mean

Phase = Literal["ordered", "edge", "chaotic"]
_SMALLEST, _LARGEST = 1e-9, 1e6
_ON_EDGE = 1e-6
"""How near to 1 chi_1 counts as 1."""


def second_moment(activation: Any, q: Tensor | float) -> Tensor:
    """E f(x)^2, x of variance ``q``."""
    f = nonlinearity(activation)
    return mean(lambda x: f.value(x).square(), q, f.kinks)


def slope_moment(activation: Any, q: Tensor | float) -> Tensor:
    """E f'(x)^2, x of variance ``q``."""
    f = nonlinearity(activation)
    return mean(lambda x: f.slope(x).square(), q, f.kinks)


def variance_map(activation: Any, q: Tensor | float, sigma_w: float, sigma_b: float) -> Tensor:
    """The variance of a unit one layer on."""
    return sigma_w**2 * second_moment(activation, q) + sigma_b**2


def chi(activation: Any, q: Tensor | float, sigma_w: float) -> Tensor:
    """chi_1: the factor of a small difference between inputs, and of a gradient's squared norm, a layer."""
    return sigma_w**2 * slope_moment(activation, q)


def covariance_map(
    activation: Any,
    first: Tensor | float,
    second: Tensor | float,
    c: Tensor | float,
    sigma_w: float,
    sigma_b: float,
) -> Tensor:
    """Covariance one layer on of two units of these variances and this correlation."""
    f = nonlinearity(activation)
    return sigma_w**2 * pair_mean(f.value, first, second, c, f.kinks) + sigma_b**2


def correlation_map(activation: Any, c: Tensor | float, q: float, sigma_w: float, sigma_b: float) -> Tensor:
    """The correlation one layer on, at a variance ``q``; a map to itself where q is a fixed point."""
    return covariance_map(activation, q, q, c, sigma_w, sigma_b) / variance_map(
        activation, q, sigma_w, sigma_b
    )


def correlation_slope(activation: Any, c: Tensor | float, q: float, sigma_w: float) -> Tensor:
    """Derivative of the correlation map at a fixed variance; chi_1 at c = 1."""
    f = nonlinearity(activation)
    return sigma_w**2 * pair_mean(f.slope, q, q, c, f.kinks)


def propagated(
    activation: Any,
    q: tuple[float, float],
    c: float,
    sigma_w: float,
    sigma_b: float,
    depth: int,
) -> tuple[Tensor, Tensor]:
    """Variances [depth + 1, 2] and correlations [depth + 1] of two inputs whose first units have these."""
    now, cos = torch.tensor(q, dtype=torch.float64), torch.tensor(c, dtype=torch.float64)
    variances, correlations = [now], [cos]
    for _ in range(depth):
        joint = covariance_map(activation, now[0], now[1], cos, sigma_w, sigma_b)
        now = variance_map(activation, now, sigma_w, sigma_b)
        cos = (joint / now.prod().sqrt().clamp(min=1e-300)).clamp(-1, 1)
        variances.append(now)
        correlations.append(cos)
    return torch.stack(variances), torch.stack(correlations)


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """Where variance and correlation come to rest.

    Attributes:
        variance: q*; 0 when signals die out.
        chi: chi_1 there; above 1 gradients grow with depth, below they vanish.
        correlation: c* that two inputs come to; 1 when the network ends up telling none apart.
        slope: of the correlation map there.
        depth: layers in which the distance to c* falls to 1 / e; infinite at the edge, where it is a power of depth.
        phase: ordered (chi_1 < 1), chaotic (chi_1 > 1) or edge.
    """

    variance: float
    chi: float
    correlation: float
    slope: float
    depth: float
    phase: Phase


def fixed_point(activation: Any, sigma_w: float, sigma_b: float, start: float = 1.0) -> FixedPoint:
    """Where the maps lead from a variance ``start``.

    Raises:
        UsageError: MT371 when the variance grows without bound.
    """
    f = nonlinearity(activation)
    q = _resting(f, sigma_w, sigma_b, start)
    at_one = float(chi(f, q, sigma_w))
    phase: Phase = "edge" if abs(at_one - 1) < _ON_EDGE else "ordered" if at_one < 1 else "chaotic"
    c, slope = 1.0, at_one
    if phase == "chaotic" and q > 0:
        # The map is convex and increasing on 0..1 (its Taylor coefficients are squares): one more fixed point.
        def off(cos: float) -> float:
            return float(correlation_map(f, cos, q, sigma_w, sigma_b)) - cos

        near = 1 - min(1e-3, (at_one - 1) / 10)
        c = 0.0 if off(0.0) <= 1e-14 else float(brentq(off, 0.0, near, xtol=1e-13)) if off(near) < 0 else near
        slope = float(correlation_slope(f, c, q, sigma_w))
    depth = math.inf if phase == "edge" else 0.0 if slope <= 0 else -1 / math.log(slope)
    return FixedPoint(variance=q, chi=at_one, correlation=c, slope=slope, depth=depth, phase=phase)


def _resting(f: Nonlinearity, sigma_w: float, sigma_b: float, start: float) -> float:
    def gain(q: float) -> float:
        return float(variance_map(f, q, sigma_w, sigma_b)) / q - 1

    here = gain(start)
    if abs(here) < 1e-12:
        return start
    factor = 2.0 if here > 0 else 0.5
    before, after = start, start * factor
    while _SMALLEST <= after <= _LARGEST:
        if gain(after) * here <= 0:
            low, high = sorted((before, after))
            return float(brentq(gain, low, high, xtol=1e-15, rtol=1e-13))
        before, after = after, after * factor
    if here > 0:
        raise UsageError(
            "MT371",
            f"the variance of '{f.name}' at sigma_w={sigma_w:g} grows without bound",
            fix="use smaller weights",
        )
    return 0.0


@dataclass(frozen=True, kw_only=True)
class Edge:
    """Weights on the edge of chaos: chi_1 = 1 at the fixed point ``variance``.

    ``parallel`` is the factor of a small change of the variance a layer: above 1 a network leaves the point, whose
    variance is then no resting place (of SiLU and GELU with small biases).
    """

    sigma_w: float
    sigma_b: float
    variance: float
    parallel: float


def edge_of_chaos(activation: Any, *, variance: float | None = None, sigma_b: float | None = None) -> Edge:
    """The weights that keep small differences as they are, at a variance, or with a deviation of biases.

    sigma_w^2 = 1 / E f'^2 and sigma_b^2 = q - sigma_w^2 E f^2 at the variance q. With ``sigma_b`` the smallest such q
    is found; with neither, q = 1. Of ReLU every q is one, and sigma_b must be 0.

    Raises:
        UsageError: MT372 when there are none.
    """
    f = nonlinearity(activation)
    if variance is not None and sigma_b is not None:
        raise UsageError("MT372", "the variance and sigma_b determine each other", fix="give one of them")

    def squared_bias(q: float) -> float:
        return q - float(second_moment(f, q)) / float(slope_moment(f, q))

    if sigma_b is not None:
        variance = _root(f, squared_bias, sigma_b**2)
    q = 1.0 if variance is None else variance
    slope = float(slope_moment(f, q))
    if slope <= 0:
        raise UsageError(
            "MT372", f"'{f.name}' is flat: no weights keep differences", fix="use another activation"
        )
    bias = 0.0 if q == 0 else squared_bias(q)
    if bias < -1e-9 * q:
        raise UsageError(
            "MT372",
            f"'{f.name}' has no edge of chaos at a variance of {q:g}: its biases would have a variance of {bias:.3g}",
            fix="give another variance",
        )
    change = 1.0
    if q > 0:  # d E f(x)^2 / dq, by parts
        change = float(mean(lambda x: f.value(x).square() * (x * x - q), q, f.kinks)) / (2 * q * q * slope)
    bias = max(bias, 0.0) if bias > 1e-12 * q else 0.0
    return Edge(sigma_w=slope**-0.5, sigma_b=bias**0.5, variance=q, parallel=change)


def _root(f: Nonlinearity, squared_bias: Callable[[float], float], wanted: float) -> float:
    """The smallest variance whose biases have the wanted variance; 0 in the limit of small signals."""
    grid = np.geomspace(1e-6, 1e4, 101)
    off = [squared_bias(q) - wanted for q in grid]
    if all(abs(v) <= 1e-9 * q for v, q in zip(off, grid, strict=True)):
        return 1.0  # scale-invariant: every variance will do
    for low, high, a, b in zip(grid, grid[1:], off, off[1:], strict=False):
        if a * b < 0 and abs(a) > 1e-9 * low:
            return float(brentq(lambda q: squared_bias(q) - wanted, low, high, xtol=1e-15, rtol=1e-12))
    small = float(grid[0])
    steep = float(slope_moment(f, 0.0))
    if wanted == 0 and steep > 0 and float(second_moment(f, 100 * small)) <= steep * 100 * small:
        return 0.0  # and small signals do not grow
    raise UsageError(
        "MT372",
        f"'{f.name}' has no edge of chaos with sigma_b={wanted**0.5:g}",
        fix="give another sigma_b, or a variance",
    )


__all__ = [
    "Edge",
    "FixedPoint",
    "chi",
    "correlation_map",
    "correlation_slope",
    "covariance_map",
    "edge_of_chaos",
    "fixed_point",
    "propagated",
    "second_moment",
    "slope_moment",
    "variance_map",
]
