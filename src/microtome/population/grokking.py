"""How long after the fit comes the generalisation: curves on learnt and held-out examples, and their crossings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from microtome.population.population import Population
from microtome.population.training import Moment

NAMES = ("train accuracy", "test accuracy", "train loss", "test loss")


def scores(inputs: Tensor, answers: Tensor, trained: Tensor) -> Callable[[Population], Tensor]:
    """A measure for a Recorder: [N, 4] of each member, in the order of :data:`NAMES`; losses are cross-entropies.

    Args:
        inputs: [n, ...] all examples, the same for all members.
        answers: [N, n].
        trained: [N, n] which of them are learnt from; the others are held out.
    """

    def read(population: Population) -> Tensor:
        log_p = population.predict(inputs).log_softmax(-1)
        right = (log_p.argmax(-1) == answers).double()
        loss = -log_p.gather(-1, answers[..., None])[..., 0].double()

        def mean(values: Tensor, of: Tensor) -> Tensor:
            return (values * of).sum(1) / of.sum(1).clamp(min=1)

        return torch.stack([mean(v, of) for v in (right, loss) for of in (trained, ~trained)], 1)

    return read


def reached(steps: Sequence[int], curve: Tensor, level: float, *, below: bool = False) -> Tensor:
    """[N] first recorded step at which a curve [t, N] is at least ``level`` (or at most); inf where it never is."""
    there = curve <= level if below else curve >= level
    first = there.double().argmax(0)
    return torch.where(there.any(0), torch.tensor(steps, dtype=torch.float64)[first], math.inf)


def all_reached(
    measure: Callable[[Population], Tensor], level: float, column: int = 1
) -> Callable[[Moment], Tensor]:
    """For ``train(..., until=)``: which members have at least ``level`` in a column of :func:`scores`."""
    return lambda moment: measure(moment.population)[:, column] >= level


__all__ = ["NAMES", "all_reached", "reached", "scores"]
