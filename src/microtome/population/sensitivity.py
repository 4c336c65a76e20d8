"""Which source of randomness makes runs differ? Vary one and hold the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from microtome.errors import UsageError, nearest
from microtome.population.population import Build, Population

Source = Literal["all", "weights", "order", "rounding", "nothing"]
SOURCES: tuple[Source, ...] = ("all", "weights", "order", "rounding", "nothing")


def varied(build: Build, seeds: Sequence[int], by: Source, *, base: int = 0) -> Population:
    """Networks that differ by one source of randomness only; everything else follows from ``base``.

    Args:
        build: makes one network.
        seeds: one a member.
        by: "all": first weights and order of the data; "weights" or "order": one of the two; "rounding": one weight of
            each member is larger by one unit in the last place (:func:`nudge`); "nothing": the control, whose members
            must stay equal.
        base: seed of what is held.

    Raises:
        UsageError: MT492 for an unknown source.
    """
    if by not in SOURCES:
        raise UsageError(
            "MT492",
            f"no source of randomness is called '{by}'",
            fix=nearest(by, SOURCES) or ", ".join(SOURCES),
        )
    drawn = by in ("all", "weights")
    made = Population.of(build, seeds) if drawn else Population.of(build, [base]).copy([0] * len(seeds))
    made.seeds = tuple(seeds) if by in ("all", "order") else (base,) * len(seeds)
    return nudge(made, seeds) if by == "rounding" else made


def nudge(population: Population, seeds: Sequence[int], name: str | None = None) -> Population:
    """Move one weight of each member, drawn by its seed, to the next larger floating-point number; in place.

    Args:
        population: of N members.
        seeds: [N].
        name: the parameter it is drawn from; by default the last matrix, in which nearly every weight is used.
    """
    matrices = [k for k, p in population.parameters.items() if p.dim() > 2]
    flat = population.parameters[name or matrices[-1]].view(len(population), -1)
    draw = torch.Generator()
    for row, seed in zip(flat, seeds, strict=True):
        place = int(torch.randint(len(row), (), generator=draw.manual_seed(int(seed))))
        row[place] = torch.nextafter(row[place], row.new_tensor(torch.inf))
    return population


__all__ = ["SOURCES", "Source", "nudge", "varied"]
