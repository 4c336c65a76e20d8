"""Means over Gaussian numbers of functions with or without kinks, by quadrature in float64.

One number: Gauss-Legendre on panels that end at every kink. Two correlated numbers: polar coordinates, where u and v
change sign at fixed angles; sectors end at those angles and where kinks of u and of v cross, rays end at kinks. So each
piece is smooth whatever the correlation, 1 included, where a product rule of Gauss-Hermite loses all but a few digits.

Measured against rules of several times the nodes, relative to the mean square: one number, below 1e-13 up to a variance
of 100 (sine: 16). Two numbers: ReLU and its like 1e-13 always; tanh, erf, GELU, SiLU, sine, hardtanh 1e-11 for
variances up to 4 (sine 2e-9), 1e-7 at 16 (sine 2e-6), 1e-5 at 100, and there 2e-4 of the slopes; sine is not to be
trusted beyond 16. ``error`` says it for any function. Kinks are found where the slope jumps, between -12 and 12.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from microtome.errors import UsageError, nearest

REACH = 12.0
"""Standard deviations beyond which nothing is summed (density below 1e-31), and where kinks are looked for."""
NODES, ANGLES, RADII = 20, 12, 14
_SOFT = (2.0, 6.0)
"""Where a smooth activation of unit scale bends most: panels end here too, so that large variances cost no digits."""
_NEAR = (0.25, 1.0)
"""Sectors also end this many radians, over the deviation, beside a change of sign: there rays meet the bend."""
_BATCH = 1 << 21
"""Evaluations at once."""

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Nonlinearity:
    """A function of one number: its value, its slope, and where the slope jumps."""

    value: Function
    slope: Function
    kinks: tuple[float, ...]
    name: str


def nonlinearity(activation: str | nn.Module | Function | Nonlinearity) -> Nonlinearity:
    """What quadrature must know of an activation, read off the function itself.

    Args:
        activation: a module, a function of a tensor entry by entry, or the name of one of torch or
            ``torch.nn.functional`` ("relu", "tanh", "sin").

    Raises:
        UsageError: MT370 for an unknown name, or a function that jumps (it has no finite slope).
    """
    if isinstance(activation, Nonlinearity):
        return activation
    if isinstance(activation, str):
        found = getattr(nn.functional, activation, None) or getattr(torch, activation, None)
        if not callable(found):
            known = ("relu", "gelu", "silu", "tanh", "erf", "elu", "selu", "sin", "leaky_relu", "hardtanh")
            raise UsageError(
                "MT370", f"torch has no activation {activation!r}", fix=nearest(activation, known)
            )
        return _named(found, activation)
    name = (
        type(activation).__name__
        if isinstance(activation, nn.Module)
        else getattr(activation, "__name__", "activation")
    )
    return _look(activation, name)  # it may change: nothing is kept


@functools.cache
def _named(function: Function, name: str) -> Nonlinearity:
    return _look(function, name)


def _look(function: Function, name: str) -> Nonlinearity:
    def value(x: Tensor) -> Tensor:
        with torch.no_grad():
            return function(x)

    def slope(x: Tensor) -> Tensor:
        with torch.enable_grad():
            result, pull = torch.func.vjp(function, x.detach())[:2]
            return pull(torch.ones_like(result))[0].detach()

    if _jumps(value):
        raise UsageError(
            "MT370", f"the activation '{name}' jumps: it has no finite slope", fix="use a continuous function"
        )
    return Nonlinearity(value=value, slope=slope, kinks=_jumps(slope), name=name)


def _jumps(function: Function) -> tuple[float, ...]:
    """Where a function of one number jumps: halve every interval over which it changes, and see whether that stays."""
    edges = torch.linspace(-REACH, REACH, 4802, dtype=torch.float64)  # 0 is no edge: it may be a kink
    left, right = edges[:-1], edges[1:]
    change = (function(right) - function(left)).abs()
    kept = change > 1e-3
    left, right, first = left[kept], right[kept], change[kept]
    for _ in range(40):
        middle = (left + right) / 2
        at = function(middle)
        lower = (at - function(left)).abs() >= (function(right) - at).abs()
        left, right = torch.where(lower, left, middle), torch.where(lower, middle, right)
    stays = (function(right) - function(left)).abs() > 0.3 * first  # a middle may hit the jump itself
    found = ((left + right) / 2)[stays]
    return tuple(sorted({0.0 if abs(v) < 1e-10 else v for v in found.tolist()}))


@functools.cache
def _legendre(order: int) -> tuple[Tensor, Tensor]:
    """Nodes in 0..1 and weights that add up to 1."""
    x, w = np.polynomial.legendre.leggauss(order)
    return torch.from_numpy((x + 1) / 2), torch.from_numpy(w / 2)


def _panels(edges: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """[..., e] sorted edges -> [..., (e - 1) order] nodes and weights of the integral over all panels."""
    t, w = _legendre(order)
    width = (edges[..., 1:] - edges[..., :-1])[..., None]
    return (edges[..., :-1, None] + width * t).flatten(-2), (width * w).flatten(-2)


def mean(
    function: Function, variance: Tensor | float, kinks: Sequence[float] = (), order: int = NODES
) -> Tensor:
    """E f(x) of x ~ N(0, variance), for variances of any shape."""
    q = torch.as_tensor(variance, dtype=torch.float64)
    root = q.sqrt()[..., None]
    marks = torch.tensor(sorted({*kinks, 0.0, *_SOFT, *(-m for m in _SOFT)}), dtype=torch.float64)
    inner = (marks / root.clamp(min=1e-300)).clamp(-REACH, REACH)
    outer = torch.tensor([-REACH, -6.0, -2.5, 2.5, 6.0, REACH], dtype=torch.float64).expand(*q.shape, 6)
    edges = torch.cat([outer, inner], -1).sort(-1).values
    z, weight = _panels(edges, order)
    density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return (function(root * z) * weight * density).sum(-1)


def pair_mean(
    function: Function,
    first: Tensor | float,
    second: Tensor | float,
    correlation: Tensor | float,
    kinks: Sequence[float] = (),
    angles: int = ANGLES,
    radii: int = RADII,
) -> Tensor:
    """E f(u) f(v) of jointly Gaussian u and v of mean 0.

    Args:
        function: f.
        first: variances of u, any shape that broadcasts with the others.
        second: variances of v.
        correlation: of u and v, -1 to 1.
        kinks: where f or its slope jumps.
        angles: nodes a sector.
        radii: nodes a piece of a ray.
    """
    given = [torch.as_tensor(v, dtype=torch.float64) for v in (first, second, correlation)]
    u, v, c = torch.broadcast_tensors(*given)
    hard = tuple(k for k in kinks if k)
    sectors, pieces = 4 + 8 * len(_NEAR) + 2 * len(hard) ** 2, 5 + 2 * len(hard)
    step = max(_BATCH // (sectors * angles * pieces * radii), 1)
    parts = [
        _pair(function, *part, hard, angles, radii)
        for part in zip(
            u.flatten().split(step), v.flatten().split(step), c.flatten().split(step), strict=True
        )
    ]
    return torch.cat(parts).reshape(u.shape)


def _pair(
    function: Function, q1: Tensor, q2: Tensor, c: Tensor, hard: tuple[float, ...], angles: int, radii: int
) -> Tensor:
    """[m] each; u = s1 r cos(t), v = s2 r cos(t - a) with cos(a) = c."""
    a = c.clamp(-1, 1).arccos()
    s1, s2 = q1.sqrt(), q2.sqrt()
    quarter = torch.full_like(a, math.pi / 2)
    start = a - quarter
    edges = [start, quarter, a + quarter, 3 * quarter, start + 4 * quarter]
    widest = torch.maximum(s1, s2).clamp(min=1e-300)[:, None]
    near = (torch.tensor(_NEAR, dtype=a.dtype) / widest).clamp(max=math.pi / 4)
    beside = torch.stack([start, quarter, a + quarter, 3 * quarter], -1)[:, :, None]
    beside = start[:, None, None] + torch.remainder(
        torch.cat([beside + near[:, None], beside - near[:, None]], -1) - start[:, None, None], 2 * math.pi
    )
    for m1 in hard:  # where a kink of u meets one of v
        for m2 in hard:
            crossing = torch.atan2(m2 * s1 / (m1 * s2.clamp(min=1e-300)) - a.cos(), a.sin())
            edges += [
                start + torch.remainder(crossing + turn - start, 2 * math.pi) for turn in (0.0, math.pi)
            ]
    t, by_angle = _panels(
        torch.cat([torch.stack(edges, -1), beside.flatten(1)], -1).sort(-1).values, angles
    )  # [m, angles]
    along = torch.stack([s1[:, None] * t.cos(), s2[:, None] * (t - a[:, None]).cos()], -1)  # [m, angles, 2]
    size = along.abs().clamp(min=1e-300)
    ends = [torch.full_like(t, end)[..., None] for end in (0.0, 2.0, 5.0, REACH)]
    ends += [(_SOFT[0] / size).clamp(max=REACH)]
    for m in hard:
        meets = (along * m) > 0
        ends.append(torch.where(meets, (abs(m) / size).clamp(max=REACH), REACH))
    r, by_radius = _panels(torch.cat(ends, -1).sort(-1).values, radii)  # [m, angles, radii]
    product = function(r * along[..., :1]) * function(r * along[..., 1:])
    rays = (product * by_radius * r * torch.exp(-r * r / 2)).sum(-1)
    return (rays * by_angle).sum(-1) / (2 * math.pi)


def error(activation: Any, variance: float, correlation: float = 0.5) -> float:
    """How far the two-number rule is from one of twice the nodes, relative: what to expect of it at this variance."""
    f = nonlinearity(activation)
    fine = pair_mean(f.value, variance, variance, correlation, f.kinks, 2 * ANGLES, 2 * RADII)
    rough = pair_mean(f.value, variance, variance, correlation, f.kinks)
    scale = mean(lambda x: f.value(x).square(), variance, f.kinks)
    return float((fine - rough).abs() / scale.clamp(min=1e-300))


__all__ = ["Nonlinearity", "error", "mean", "nonlinearity", "pair_mean"]
