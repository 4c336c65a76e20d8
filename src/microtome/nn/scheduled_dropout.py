"""Dropout whose rate may change while training and differ by network: early, late, or tuned (Liu et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from microtome.errors import UsageError
from microtome.population import Moment, Population
from microtome.population.optimizers import Number


class ScheduledDropout(nn.Module):
    """Zero each entry with probability ``rate`` and scale the rest by 1 / (1 - rate); the identity in eval mode.

    As ``nn.Dropout``, but the rate, in 0..1, is a buffer: it is saved with the network, a population holds one a
    member, and it is changed by filling it (:func:`set_rates`), without rebuilding or tracing anything anew.
    """

    rate: Tensor

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise UsageError("MT466", f"a dropout rate of {rate}", fix="give 0 <= rate < 1")
        self.register_buffer("rate", torch.tensor(float(rate)))

    def forward(self, x: Tensor) -> Tensor:
        """[...] -> [...]."""
        if not self.training:
            return x
        kept = torch.rand_like(x) >= self.rate
        return x * kept / (1 - self.rate)


def early(rate: float, until: int, *, linear: bool = True) -> Callable[[int], float]:
    """Dropout for the first ``until`` steps only: step -> rate, falling to 0 in a line, or at once."""
    return lambda step: (rate * (1 - step / until) if linear else rate) if step < until else 0.0


def late(rate: float, start: int) -> Callable[[int], float]:
    """Dropout from step ``start`` on."""
    return lambda step: rate if step >= start else 0.0


def set_rates(population: Population, rate: Number) -> None:
    """Set every dropout rate of a population: one number, or one a member [N].

    Raises:
        UsageError: MT466 when no layer has a rate.
    """
    names = [
        f"{name}.rate" if name else "rate"
        for name, module in population.template.named_modules()
        if isinstance(module, ScheduledDropout)
    ]
    if not names:
        raise UsageError("MT466", "the networks have no ScheduledDropout", fix="build them with it")
    for name in names:
        population.buffers[name].copy_(torch.as_tensor(rate))


class DropoutSchedule:
    """An observer that sets the rates before every update: ``train(..., observers=[(schedule, every(1))])``.

    ``rate`` is step -> a number, or [N] (:func:`microtome.learn.one_cycle.by_member` stacks schedules). Members that
    ``until`` stopped are cut out of the training state, which the observer does not reach: train without it.
    """

    def __init__(self, rate: Callable[[int], Number]) -> None:
        self.rate = rate

    def __call__(self, moment: Moment) -> None:
        """See :data:`microtome.population.training.Observer`."""
        set_rates(moment.population, self.rate(moment.step))


__all__ = ["DropoutSchedule", "ScheduledDropout", "early", "late", "set_rates"]
