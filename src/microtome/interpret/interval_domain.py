"""Intervals as values, the interval domain with its rounding, and what its rules share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from microtome.interpret.interpreter import Domain

Rounding = Literal["typical", "proved", "none"]


@dataclass(frozen=True, slots=True, eq=False)
class Interval:
    """Numbers between ``lower`` and ``upper``, entry by entry."""

    lower: Tensor
    upper: Tensor

    @staticmethod
    def around(
        x: Tensor, radius: float | Tensor, low: float | None = None, high: float | None = None
    ) -> Interval:
        """The box of half-width ``radius``, cut to [low, high] where given."""
        lower, upper = x - radius, x + radius
        return (
            Interval(lower.clamp(min=low), upper.clamp(max=high))
            if low is not None or high is not None
            else (Interval(lower, upper))
        )

    @property
    def shape(self) -> torch.Size:
        """Shape of either end."""
        return self.lower.shape

    @property
    def dtype(self) -> torch.dtype:
        """Type of either end."""
        return self.lower.dtype

    @property
    def device(self) -> torch.device:
        """Device of either end."""
        return self.lower.device

    @property
    def center(self) -> Tensor:
        """Midpoint."""
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> Tensor:
        """Half the width."""
        return (self.upper - self.lower) / 2

    @property
    def magnitude(self) -> Tensor:
        """Greatest absolute value."""
        return torch.maximum(self.lower.abs(), self.upper.abs())

    @property
    def width(self) -> Tensor:
        """Upper minus lower."""
        return self.upper - self.lower

    def contains(self, x: Tensor) -> Tensor:
        """Entry by entry, whether the number lies inside."""
        return (self.lower <= x) & (x <= self.upper)

    def __repr__(self) -> str:
        return f"Interval({list(self.shape)}, mean width {float(self.width.mean()):.3g})"


@dataclass(frozen=True)
class Intervals(Domain):
    """Interval bounds as a domain; ``rounding`` says how far ranges are widened outwards."""

    name: ClassVar[str] = "interval"
    value: ClassVar[type | None] = Interval
    rounding: Rounding = "typical"

    def gamma(self, terms: float, dtype: torch.dtype) -> float:
        """Relative widening for a sum of this many products."""
        if self.rounding == "none":
            return 0.0
        return torch.finfo(dtype).eps * (4 + (terms if self.rounding == "proved" else math.sqrt(terms)))

    def outward(self, lower: Tensor, upper: Tensor, ulps: float = 1, scale: Tensor | None = None) -> Interval:
        """Widen by ``ulps`` units of eps relative to the ends, or to ``scale``."""
        if self.rounding == "none" or not ulps:
            return Interval(lower, upper)
        step = ulps * torch.finfo(lower.dtype).eps
        if scale is not None:
            return Interval(lower - step * scale, upper + step * scale)
        # Written as products, because masks bring infinities.
        return Interval(
            torch.minimum(lower * (1 - step), lower * (1 + step)),
            torch.maximum(upper * (1 - step), upper * (1 + step)),
        )


def linear_map(
    domain: Intervals,
    x: Interval,
    terms: float,
    apply: Callable[[Tensor], Tensor],
    spread: Callable[[Tensor], Tensor],
    size: Tensor | None = None,
) -> Interval:
    """A linear map: ``apply`` to the centre (with its constant), ``spread`` (absolute weights) to the radius.

    ``size`` is the magnitude of the constant. The rounding error of the centre is part of the radius it is
    given.
    """
    center, radius = x.center, x.radius
    gamma = domain.gamma(terms, x.dtype)
    middle = apply(center)
    reach = spread(radius * (1 + gamma) + gamma * center.abs() if gamma else radius)
    if gamma and size is not None:
        reach = reach + gamma * size
    return domain.outward(middle - reach, middle + reach, 2)


def interval_of(value: Any) -> Interval:
    """A number as the range that holds it alone."""
    return value if isinstance(value, Interval) else Interval(value, value)


def scaled(domain: Intervals, x: Interval, factor: Any) -> Interval:
    """Multiply by a number or tensor of numbers."""
    if isinstance(factor, int | float) and factor == 1:
        return x
    first, second = x.lower * factor, x.upper * factor
    return domain.outward(torch.minimum(first, second), torch.maximum(first, second))


def per_channel(tensor: Tensor, like: Any) -> Tensor:
    """[c] -> [1, c, 1, ...]."""
    return tensor.reshape(1, -1, *[1] * (len(like.shape) - 2))
