"""How a linear map shares out the relevance of its results: the rules, as functions of the map alone.

For y_j = sum_i x_i w_ij + b_j a rule gives R_i = sum_j (contribution of i to j) / (sum of contributions to j) R_j; the
rules differ in what they call a contribution. Sources: epsilon and alpha-beta, Bach et al. 2015; z+, w^2 and z^B,
Montavon et al. 2017 (deep Taylor decomposition); gamma, Montavon et al. 2019, in the form for inputs of both signs of
Andeol et al. 2021; flat, Lapuschkin et al. 2019.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

STABILISER = 1e-6


def ratio(relevance: Tensor, total: Tensor, stabiliser: float) -> Tensor:
    """R / (z + stabiliser * sign z), where 0 has the sign +; with a stabiliser of 0, nothing where z is 0."""
    if stabiliser == 0:
        nothing = total == 0
        return torch.where(nothing, 0.0, relevance / total.masked_fill(nothing, 1.0))
    little = total.new_tensor(stabiliser)  # of the same type, so that nothing is promoted
    denominator = torch.copysign(little, total).add_(total)
    if denominator.shape != relevance.shape:
        return relevance / denominator
    return torch.div(relevance, denominator, out=denominator)


@dataclass(eq=False, kw_only=True)
class LinearMap:
    """y = apply(x, weight) + bias, with ``apply`` linear in each; ``back(s, weight)`` is its transpose in x."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None  # broadcasts with y
    y: Tensor
    apply: Callable[[Tensor, Tensor], Tensor]
    back: Callable[[Tensor, Tensor], Tensor]
    by_row: bool = False
    """Whether each row of x has its own row of y, so that constants need one row only."""
    alike: Callable[[Tensor], Tensor] | None = None
    """R -> its share-out when all weights are alike, where there is a cheaper way than ``apply``."""

    def constant(self, value: Tensor | float, weight: Tensor) -> Tensor:
        """``apply`` on an input that is the same for every example."""
        like = self.x[:1] if self.by_row else self.x
        return self.apply(torch.zeros_like(like) + value, weight)

    @cached_property
    def parts(self) -> tuple[Tensor, Tensor | None]:
        """Positive and negative part of x; None for a negative part that is nothing, as it is after a ReLU."""
        if bool(self.x.amin() >= 0):
            return self.x, None
        positive = self.x.clamp(min=0)
        return positive, self.x - positive

    def signed(self, which: int) -> Tensor:
        """Sum of the contributions that are positive (``which`` 1), or negative (-1), without the bias."""
        above, below = self.weight.clamp(min=0), self.weight.clamp(max=0)
        if which < 0:
            above, below = below, above
        positive, negative = self.parts
        total = self.apply(positive, above)
        return total if negative is None else total + self.apply(negative, below)

    def share(self, above: Tensor, below: Tensor, s: Tensor) -> Tensor:
        """x+ times the transpose of ``s`` by the weights ``above``, and x- times that by ``below``."""
        positive, negative = self.parts
        share = positive * self.back(s, above)
        return share if negative is None else share + negative * self.back(s, below)


class Rule(ABC):
    """What an input contributes to a result; subclasses are frozen dataclasses."""

    @abstractmethod
    def share(self, at: LinearMap, relevance: Tensor) -> Tensor:
        """Relevance of y, shaped like it -> relevance of x."""


def _clamped(bias: Tensor | None, which: int) -> Tensor | float:
    if bias is None:
        return 0.0
    return bias.clamp(min=0) if which > 0 else bias.clamp(max=0)


@dataclass(frozen=True)
class Epsilon(Rule):
    """Contributions x_i w_ij; LRP-0 with an epsilon of 0. A bias, and epsilon, absorb their part."""

    epsilon: float = STABILISER

    def share(self, at: LinearMap, relevance: Tensor) -> Tensor:
        """Shares x * W^T (R / (y + epsilon))."""
        return at.x * at.back(ratio(relevance, at.y, self.epsilon), at.weight)


@dataclass(frozen=True)
class AlphaBeta(Rule):
    """alpha times the shares among positive contributions, less beta times those among negative ones.

    (1, 0) is the z+ rule, here for inputs of both signs. ``bias`` says whether a positive bias takes part among the
    positive ones (and a negative one among the negative); deep Taylor decomposition leaves it out.
    """

    alpha: float = 2.0
    beta: float = 1.0
    bias: bool = True
    stabiliser: float = STABILISER

    def share(self, at: LinearMap, relevance: Tensor) -> Tensor:
        """Shares alpha z+ / sum z+ - beta z- / sum z-."""
        above, below = at.weight.clamp(min=0), at.weight.clamp(max=0)
        total = at.signed(1) + (_clamped(at.bias, 1) if self.bias else 0.0)
        share = self.alpha * at.share(above, below, ratio(relevance, total, self.stabiliser))
        if self.beta == 0:
            return share
        total = at.signed(-1) + (_clamped(at.bias, -1) if self.bias else 0.0)
        return share - self.beta * at.share(below, above, ratio(relevance, total, self.stabiliser))


@dataclass(frozen=True)
class Gamma(Rule):
    """Contributions of the result's own sign count 1 + gamma times; the bias likewise."""

    gamma: float = 0.25
    stabiliser: float = STABILISER

    def share(self, at: LinearMap, relevance: Tensor) -> Tensor:
        """(z + gamma z+) / sum where y > 0, (z + gamma z-) / sum where y < 0."""
        above = at.weight + self.gamma * at.weight.clamp(min=0)
        below = at.weight + self.gamma * at.weight.clamp(max=0)
        total = at.y + self.gamma * (at.signed(1) + _clamped(at.bias, 1))
        s = ratio(relevance * (at.y > 0), total, self.stabiliser)
        share = at.share(above, below, s)
        rest = relevance * (at.y < 0)
        if bool(rest.abs().amax() > 0):  # nothing, where a ReLU follows and the rule above it shares by value
            total = at.y + self.gamma * (at.signed(-1) + _clamped(at.bias, -1))
            share = share + at.share(below, above, ratio(rest, total, self.stabiliser))
        return share


@dataclass(frozen=True)
class Box(Rule):
    """z^B: contributions x_i w_ij - low w_ij+ - high w_ij-, for inputs known to lie between low and high.

    Numbers, or one number for each channel (dimension 1 of the input).
    """

    low: float | tuple[float, ...] = 0.0
    high: float | tuple[float, ...] = 1.0
    stabiliser: float = STABILISER

    def share(self, at: LinearMap, relevance: Tensor) -> Tensor:
        """Never negative for a relevance that is not."""
        low, high = _by_channel(self.low, at.x), _by_channel(self.high, at.x)
        above, below = at.weight.clamp(min=0), at.weight.clamp(max=0)
        plain = at.y if at.bias is None else at.y - at.bias
        total = plain - at.constant(low, above) - at.constant(high, below)
        s = ratio(relevance, total, self.stabiliser)
        whole, negative = at.back(s, at.weight), at.back(s, below)
        return at.x * whole - low * (whole - negative) - high * negative


def _by_channel(value: float | tuple[float, ...], x: Tensor) -> Tensor:
    if isinstance(value, tuple):
        return x.new_tensor(value).reshape(-1, *(1 for _ in x.shape[2:]))
    return x.new_tensor(value)


@dataclass(frozen=True)
class Square(Rule):
    """w^2: contributions w_ij^2, whatever the input; for inputs without bounds."""

    stabiliser: float = STABILISER

    def share(self, at: LinearMap, relevance: Tensor) -> Tensor:
        """Squared weights alone."""
        squared = at.weight.square()
        return at.back(ratio(relevance, at.constant(1.0, squared), self.stabiliser), squared).expand_as(at.x)


@dataclass(frozen=True)
class Flat(Rule):
    """Equal contributions of all inputs that reach a result: shows where, not which."""

    stabiliser: float = STABILISER

    def share(self, at: LinearMap, relevance: Tensor) -> Tensor:
        """As if every weight were 1."""
        if at.alike is not None:
            return at.alike(relevance)
        ones = torch.ones_like(at.weight)
        return at.back(ratio(relevance, at.constant(1.0, ones), self.stabiliser), ones).expand_as(at.x)


ZPlus = AlphaBeta(1.0, 0.0)
"""The z+ rule as LRP has it: a positive bias takes part."""
