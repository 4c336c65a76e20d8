"""Functions of one number: derivative, where the derivative is monotone, where it is zero.

That is all a bound needs to know: ``Curve.range`` gives the least and greatest value on an interval,
``Curve.offset`` the exact offset of the line of a given slope below or above the function, ``Curve.slopes``
slopes of good lines. A new activation is one entry of ``CURVES``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from microtome.interpret.operations import aten, overloads

_GRID = 17  # sample points when a slope is chosen; the line's offset is exact whatever the slope
_HALVINGS = 26


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A function of one number, with what is known about its shape.

    ``breaks``: points between which the derivative is monotone (inflections, kinks). ``stationary``: where
    the function turns. ``monotone``: +1, -1 or 0. ``domain``: where it is defined; ``pole``: a pole at 0.
    ``ulps``: error of torch's own evaluation in units of eps; ``at_input``: relative to the larger of input
    and result instead of the result.
    """

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    breaks: tuple[float, ...] = ()
    stationary: tuple[float, ...] = ()
    monotone: int = 0
    domain: tuple[float, float] = (-math.inf, math.inf)
    pole: bool = False
    ulps: int = 4
    at_input: bool = False

    def range(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Least and greatest value on [lower, upper], without regard to rounding."""
        first, last = self.value(lower), self.value(upper)
        if self.monotone > 0:
            return first, last
        if self.monotone < 0:
            return last, first
        least, most = torch.minimum(first, last), torch.maximum(first, last)
        for point in self.stationary:
            inside = (lower < point) & (point < upper)
            turning = self.value(torch.full_like(lower, point))
            least = torch.where(inside, torch.minimum(least, turning), least)
            most = torch.where(inside, torch.maximum(most, turning), most)
        return least, most

    def offset(self, slope: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Min and max over [lower, upper] of value(x) - slope x: the exact offsets of lines of that slope.

        The extremes lie at the ends, at breaks, or where the derivative equals the slope: once at most
        between two breaks, found by halving. Differentiable in the slope (the touching point is held
        fixed).
        """
        points = [lower, upper]
        with torch.no_grad():
            edges = [
                lower,
                *(torch.clamp(torch.full_like(lower, b), lower, upper) for b in self.breaks),
                upper,
            ]
            for left, right in itertools.pairwise(edges):
                points.append(self._touch(slope.detach(), left, right))
            points += edges[1:-1]
        heights = [self.value(point) - slope * point for point in points]
        least, most = heights[0], heights[0]
        for height in heights[1:]:
            least, most = torch.minimum(least, height), torch.maximum(most, height)
        return least, most

    def _touch(self, slope: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Where the derivative, monotone between left and right, crosses ``slope`` (else an end)."""
        # Derivatives at kinks and poles are those inside the segment: look a little inwards.
        inward = (right - left) * 1e-3
        rising = self.slope(right - inward) >= self.slope(left + inward)
        for _ in range(_HALVINGS):
            middle = (left + right) / 2
            before = (self.slope(middle) < slope) == rising
            left, right = torch.where(before, middle, left), torch.where(before, right, middle)
        return (left + right) / 2

    def slopes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Slopes of the lines below and above with the least area between line and function.

        The height of the best line at the midpoint is convex (concave) in its slope; it is found by halving
        on sampled points. Being approximate here costs tightness, never soundness.
        """
        with torch.no_grad():
            steps = torch.linspace(0, 1, _GRID, dtype=lower.dtype, device=lower.device)
            steps = steps.reshape(-1, *[1] * lower.dim())
            points = lower + (upper - lower) * steps
            values = self.value(points)
            chords = (values[1:] - values[:-1]) / (points[1:] - points[:-1]).clamp(min=1e-12)
            middle, half = (lower + upper) / 2, _GRID // 2 + 1
            result = []
            for sign in (-1.0, 1.0):  # below, above
                low, high = chords.amin(0), chords.amax(0)
                for _ in range(14):
                    slope = (low + high) / 2
                    heights = torch.addcmul(values, slope, points, value=-1)
                    # Whether the line touches beyond the middle; extremes of halves, for argmax is slow.
                    if sign > 0:
                        beyond = heights[half:].amax(0) > heights[:half].amax(0)
                    else:
                        beyond = heights[half:].amin(0) < heights[:half].amin(0)
                    steeper = beyond if sign > 0 else ~beyond
                    low, high = torch.where(steeper, slope, low), torch.where(steeper, high, slope)
                result.append((low + high) / 2)
            # On a range so narrow that differences are rounding errors, the tangent.
            size = 1 + torch.maximum(lower.abs(), upper.abs())
            narrow = upper - lower <= 1e3 * torch.finfo(lower.dtype).eps * size
            tangent = self.slope(middle)
            return torch.where(narrow, tangent, result[0]), torch.where(narrow, tangent, result[1])


def _normal_density(x: Tensor) -> Tensor:
    return torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _gelu(approximate: str = "none") -> Curve:
    if approximate == "tanh":
        c = math.sqrt(2 / math.pi)

        def slope(x: Tensor) -> Tensor:
            t = torch.tanh(c * (x + 0.044715 * x**3))
            return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)

        edge = 1.4185040087908283
        return Curve(
            value=lambda x: F.gelu(x, approximate="tanh"),
            slope=slope,
            breaks=(-edge, edge),
            stationary=(-0.7524614220710163,),
            at_input=True,
            ulps=8,
        )
    return Curve(
        value=F.gelu,
        slope=lambda x: 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * _normal_density(x),
        breaks=(-math.sqrt(2), math.sqrt(2)),
        stationary=(-0.7517915246935645,),
        at_input=True,
        ulps=8,
    )


def _silu() -> Curve:
    def slope(x: Tensor) -> Tensor:
        s = torch.sigmoid(x)
        return s * (1 + x * (1 - s))

    edge = 2.3993572805154676
    return Curve(value=F.silu, slope=slope, breaks=(-edge, edge), stationary=(-1.2784645427610738,), ulps=8)


def _mish() -> Curve:
    def slope(x: Tensor) -> Tensor:
        t, s = torch.tanh(F.softplus(x)), torch.sigmoid(x)
        return t + x * s * (1 - t * t)

    return Curve(
        value=F.mish,
        slope=slope,
        breaks=(-2.2563763963607935, 1.4905711794854282),
        stationary=(-1.1924312145154956,),
        ulps=8,
    )


def _elu(alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Curve:
    return Curve(
        value=lambda x: aten.elu.default(x, alpha, scale, input_scale),
        slope=lambda x: torch.where(
            x > 0,
            torch.full_like(x, scale),
            scale * alpha * input_scale * torch.exp((x * input_scale).clamp(max=0)),
        ),
        breaks=(0.0,),
        stationary=() if alpha >= 0 else (0.0,),
        monotone=1 if alpha >= 0 else 0,
    )


def _leaky(slope: float = 0.01) -> Curve:
    return Curve(
        value=lambda x: F.leaky_relu(x, slope),
        slope=lambda x: torch.where(x > 0, torch.ones_like(x), torch.full_like(x, slope)),
        breaks=(0.0,),
        stationary=(0.0,),
        monotone=1 if slope >= 0 else 0,
        ulps=1,
    )


def _clamp(low: float | None = None, high: float | None = None) -> Curve:
    least, most = -math.inf if low is None else float(low), math.inf if high is None else float(high)
    return Curve(
        value=lambda x: x.clamp(least, most),
        slope=lambda x: ((x > least) & (x < most)).to(x.dtype),
        breaks=tuple(edge for edge in (least, most) if math.isfinite(edge)),
        monotone=1,
        ulps=0,
    )


def _hardswish() -> Curve:
    return Curve(
        value=F.hardswish,
        slope=lambda x: torch.where(x <= -3, 0.0, torch.where(x >= 3, 1.0, (2 * x + 3) / 6)).to(x.dtype),
        breaks=(-3.0, 3.0),
        stationary=(-1.5,),
        ulps=8,
    )


def _hardsigmoid() -> Curve:
    return Curve(
        value=F.hardsigmoid,
        slope=lambda x: ((x > -3) & (x < 3)).to(x.dtype) / 6,
        breaks=(-3.0, 3.0),
        monotone=1,
        ulps=8,
    )


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> Curve:
    return Curve(
        value=lambda x: F.softplus(x, beta, threshold), slope=lambda x: torch.sigmoid(beta * x), monotone=1
    )


def _power(exponent: float) -> Curve:
    whole = float(exponent).is_integer()
    even = whole and int(exponent) % 2 == 0
    domain = (-math.inf, math.inf) if whole and exponent > 0 else (0.0, math.inf)
    monotone = (0 if even else 1) if whole and exponent > 0 else 1 if exponent > 0 else -1
    return Curve(
        value=lambda x: x**exponent,
        slope=lambda x: exponent * x ** (exponent - 1),
        breaks=(0.0,) if whole and exponent > 0 else (),
        stationary=(0.0,) if even and exponent > 0 else (),
        monotone=monotone,
        domain=domain,
    )


def _logistic() -> Curve:
    def slope(x: Tensor) -> Tensor:
        s = torch.sigmoid(x)
        return s * (1 - s)

    return Curve(value=torch.sigmoid, slope=slope, breaks=(0.0,), monotone=1)


def _tanh() -> Curve:
    return Curve(value=torch.tanh, slope=lambda x: 1 - torch.tanh(x) ** 2, breaks=(0.0,), monotone=1)


_POSITIVE = (0.0, math.inf)
# operation -> (options of the operation) -> Curve
CURVES: dict[Any, Callable[..., Curve]] = {
    op: curve
    for names, curve in (
        (("relu",), lambda: _clamp(0.0)),
        (("relu6",), lambda: _clamp(0.0, 6.0)),
        (("hardtanh",), lambda low=-1.0, high=1.0: _clamp(low, high)),
        (("clamp", "clamp_min"), _clamp),
        (("clamp_max",), lambda high: _clamp(None, high)),
        (("leaky_relu",), _leaky),
        (("elu",), _elu),
        (("selu",), lambda: _elu(1.6732632423543772848170429916717, 1.0507009873554804934193349852946)),
        (("celu",), lambda alpha=1.0: _elu(alpha, 1.0, 1 / alpha)),
        (("gelu",), _gelu),
        (("silu",), _silu),
        (("mish",), _mish),
        (("hardswish",), _hardswish),
        (("hardsigmoid",), _hardsigmoid),
        (("softplus",), _softplus),
        (("sigmoid",), _logistic),
        (("tanh",), _tanh),
        (("log_sigmoid",), lambda: Curve(value=F.logsigmoid, slope=lambda x: torch.sigmoid(-x), monotone=1)),
        (
            ("erf",),
            lambda: Curve(
                value=torch.erf,
                slope=lambda x: 2 / math.sqrt(math.pi) * torch.exp(-x * x),
                breaks=(0.0,),
                monotone=1,
            ),
        ),
        (("exp",), lambda: Curve(value=torch.exp, slope=torch.exp, monotone=1)),
        (("log",), lambda: Curve(value=torch.log, slope=torch.reciprocal, monotone=1, domain=_POSITIVE)),
        (
            ("sqrt",),
            lambda: Curve(
                value=torch.sqrt,
                slope=lambda x: 0.5 * x.clamp(min=1e-30).rsqrt(),
                monotone=1,
                domain=_POSITIVE,
            ),
        ),
        (
            ("rsqrt",),
            lambda: Curve(
                value=torch.rsqrt, slope=lambda x: -0.5 * x.rsqrt() / x, monotone=-1, domain=_POSITIVE
            ),
        ),
        (
            ("reciprocal",),
            lambda: Curve(value=torch.reciprocal, slope=lambda x: -1 / (x * x), monotone=-1, pole=True),
        ),
        (
            ("abs",),
            lambda: Curve(value=torch.abs, slope=torch.sign, breaks=(0.0,), stationary=(0.0,), ulps=0),
        ),
        (("square",), lambda: _power(2)),
        (("pow.Tensor_Scalar",), _power),
    )
    for op in overloads(*names)
}
