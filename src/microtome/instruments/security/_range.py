"""The range that strengths are shares of: the bounds of the inputs, or that of the examples looked at."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from microtome.errors import Refusal
from microtome.folds import Moments, Selection
from microtome.signals import inputs
from microtome.subject import Subject


def rounds_for_range(subject: Subject) -> int:
    """Rounds it takes before anything else is asked."""
    return 0 if subject.bounds is not None else 1


def range_of_inputs(subject: Subject, over: Selection) -> Generator[Any, Any, tuple[float, float]]:
    """(low, high), with ``yield from``.

    Raises:
        Refusal: when all inputs are one number.
    """
    if subject.bounds is not None:
        low, high = subject.bounds
    else:
        spread = yield Moments(signals=(inputs,), over=over)
        low, high = float(spread.minimum.min()), float(spread.maximum.max())
    if high <= low:
        raise Refusal("all inputs are the same number: no range to measure a strength by")
    return low, high
