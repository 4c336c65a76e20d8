"""Specimens: subjects whose answers are known by construction, so that a reading can be compared with the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from microtome.finding import Finding
from microtome.subject import Subject


@dataclass(frozen=True)
class Truth:
    """What one instrument must read on one specimen.

    Attributes:
        instrument: ``room/method``.
        quantity: key in the finding's quantities, or a label when ``read`` says how to get the number.
        value: the truth.
        tolerance: largest absolute error that still counts as reading right; from the theory of the
            estimator (its own standard error), not from what it happens to give.
        why: how the truth is known.
        options: options the instrument is run with.
        read: takes the number from the finding when it is not a quantity.
    """

    instrument: str
    quantity: str
    value: float
    tolerance: float
    why: str
    options: Mapping[str, Any] = field(default_factory=dict)
    read: Callable[[Finding], float] | None = None


@dataclass(frozen=True)
class Specimen:
    """A subject and what is true of it."""

    name: str
    subject: Subject
    truths: tuple[Truth, ...]


Builder = Callable[[], Specimen]


def specimen(build: Builder) -> Builder:
    """Mark a function of :mod:`microtome.specimens` (or of a plug-in module) that builds a specimen."""
    build.is_specimen = True  # type: ignore[attr-defined]
    return build


def specimens() -> dict[str, Builder]:
    """All builders by name, found by walking the tree."""
    from microtome.registry import specimen_modules

    return {
        name: value
        for module in specimen_modules()
        for name, value in vars(module).items()
        if getattr(value, "is_specimen", False) and value.__module__ == module.__name__
    }
