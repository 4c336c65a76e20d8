"""Two halves of the examples by a hash of their ids: one to fit on, one to judge on."""

from __future__ import annotations

from torch import Tensor

from microtome.signals import Signal, derive, rows
from microtome.signals.noise import row_uniform


def half(of: Signal, *, held: bool, seed: int = 0) -> Signal:
    """The rows of ``of`` ([n, ...]) that are fitted on, or those held back; about half of them each."""
    return derive(_half, of, rows, seed=seed, held=held, name="held half" if held else "fitted half")


def _half(value: Tensor, rows: Tensor, seed: int, held: bool) -> Tensor:
    return value[((row_uniform(rows, seed, 21) < 0.5) != held).to(value.device)]
