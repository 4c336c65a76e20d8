"""Learning-rate schedules, the one-cycle policy, and two ways of finding its largest rate (Smith & Topin 2018).

A schedule is a function of the step, from 0, that returns a factor of the rate, as ``Recipe(schedule=...)`` and
``torch.optim.lr_scheduler.LambdaLR`` take it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from microtome.errors import UsageError
from microtome.population import Moment, Population, Recipe, every, train
from microtome.population.optimizers import SGD, Number

Schedule = Callable[[int], float]


def constant(step: int) -> float:
    """1 at every step."""
    return 1.0


def step_decay(total: int, *, at: Sequence[float] = (0.5, 0.75), factor: float = 0.1) -> Schedule:
    """Multiply by ``factor`` at each of these shares of the steps."""
    return lambda step: factor ** sum(step >= share * total for share in at)


def cosine(total: int) -> Schedule:
    """From 1 to 0 along half a cosine (Loshchilov & Hutter 2017)."""
    return lambda step: 0.5 * (1 + math.cos(math.pi * min(step, total) / total))


@dataclass(frozen=True, kw_only=True)
class OneCycle:
    """Up from a small rate to the largest and back in straight lines, then on to nearly nothing; momentum mirrors it.

    As ``torch.optim.lr_scheduler.OneCycleLR`` with ``three_phase`` and linear annealing, as a function of the step.

    Attributes:
        total: steps.
        up: share of the steps on the way up; as many lead down again, the rest anneals.
        start: first rate, as a share of the largest.
        end: last rate, as a share of the largest.
        momentum: (at the smallest rate, at the largest).
    """

    total: int
    up: float = 0.45
    start: float = 0.1
    end: float = 1e-3
    momentum: tuple[float, float] = (0.95, 0.85)

    def _place(self, step: int, low: float, high: float, last: float) -> float:
        top, back = self.up * self.total - 1, 2 * self.up * self.total - 2
        ends = ((0.0, low), (top, high), (back, low), (self.total - 1.0, last))
        for (a, from_), (b, to) in itertools.pairwise(ends):
            if step <= b or b == self.total - 1:
                return from_ + (to - from_) * min(max((step - a) / max(b - a, 1e-9), 0.0), 1.0)
        return last

    def __call__(self, step: int) -> float:
        """Factor of the largest rate."""
        return self._place(step, self.start, 1.0, self.end)

    def momentum_at(self, step: int) -> float:
        """Momentum of a step."""
        slow, fast = self.momentum
        return self._place(step, slow, fast, slow)


def by_member(schedules: Sequence[Schedule]) -> Callable[[int], Tensor]:
    """One schedule a member, for a recipe: step -> [N]. Equal ones may be one object, which is asked once."""
    kinds = list({id(s): s for s in schedules}.values())
    index = torch.tensor([next(i for i, k in enumerate(kinds) if k is s) for s in schedules])
    return lambda step: torch.tensor([k(step) for k in kinds])[index]


class ScheduledMomentum(SGD):
    """Descent with momentum that changes with the step: ``Recipe(optimizer=lambda: ScheduledMomentum(...))``.

    ``momentum`` is step -> a number, or [N]; such a population is trained without ``until``.
    """

    def __init__(self, momentum: Callable[[int], Number], *, weight_decay: Number = 0.0) -> None:
        super().__init__(weight_decay=weight_decay, momentum=momentum(0))
        self._momentum = momentum

    def step(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], rate: Number) -> None:
        """See :class:`microtome.population.optimizers.Optimizer`."""
        self.hyper["momentum"] = self._momentum(self.steps)
        super().step(parameters, gradients, rate)


def range_test(
    population: Population, inputs: Tensor, targets: Tensor, recipe: Recipe, *, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """Learning-rate range test: the rate grows geometrically from ``low`` to ``high`` over the steps of the recipe.

    Trains copies, not the members. Returns rates [t] and the loss of the batch each was used on [t, N]; the largest
    rate worth trying lies where the loss stops falling (:func:`largest_rate`).

    Raises:
        UsageError: MT465 unless 0 < low < high and the recipe counts steps.
    """
    if not 0 < low < high or not recipe.steps or recipe.steps < 2:
        raise UsageError(
            "MT465", "a range test grows the rate from low to high", fix="give 0 < low < high, steps > 1"
        )
    total, held = recipe.steps, []
    ramp = [low * (high / low) ** (i / (total - 1)) for i in range(total)]
    changed = {**recipe.__dict__, "rate": 1.0, "schedule": ramp.__getitem__}
    watch = [(lambda moment: held.append(moment.loss.clone()), every(1))]
    train(population.copy(), inputs, targets, Recipe(**changed), observers=watch)
    return torch.tensor(ramp), torch.stack(held[1:])


def largest_rate(rates: Tensor, losses: Tensor, *, smooth: float = 0.9) -> Tensor:
    """[N] the rate at which the smoothed loss of a range test is lowest, before it turns up."""
    held, found = losses[0], []
    for row in losses.nan_to_num(nan=math.inf, posinf=math.inf):
        held = smooth * held + (1 - smooth) * row
        found.append(held)
    return rates[torch.stack(found).argmin(0)]


class RateEstimate:
    """The rate that a quadratic valley would want, from three places in a row: an observer of every step.

    With steps -rate g, the change of two successive steps is rate^2 H g, so |d_t| / |d_t - d_{t+1}| times the rate is
    1 / curvature along the way: the Hessian-free estimate of Smith & Topin, for descent without momentum. ``estimates``
    [t, N] holds one a step from the third place on.
    """

    def __init__(self, rate: Callable[[int], Number]) -> None:
        self.rate, self._held = rate, list[Tensor]()
        self._found: list[Tensor] = []

    def __call__(self, moment: Moment) -> None:
        """See :data:`microtome.population.training.Observer`."""
        self._held = [*self._held[-2:], moment.population.vectors()]
        if len(self._held) == 3:
            first, second, third = self._held
            change, bend = second - first, 2 * second - first - third
            ratio = change.abs().sum(1) / bend.abs().sum(1).clamp(min=1e-30)
            self._found.append(self.rate(moment.step - 2) * ratio)

    @property
    def estimates(self) -> Tensor:
        """[t, N]."""
        return torch.stack(self._found)


__all__ = [
    "OneCycle",
    "RateEstimate",
    "Schedule",
    "ScheduledMomentum",
    "by_member",
    "constant",
    "cosine",
    "largest_rate",
    "range_test",
    "step_decay",
]
