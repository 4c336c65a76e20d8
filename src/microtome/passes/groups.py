"""Pending folds, merged: equal folds once, folds over the same rows together, one program a group."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from microtome.errors import Refusal
from microtome.folds.base import Fold, Selection
from microtome.passes.memory import kept_bytes, rows_per_slice
from microtome.signals.program import Program, wait_for_each_other
from microtome.subject import Subject

TOGETHER = 8
"""Slices whose inputs and small values are held at a time while parameters are changed for all of them."""


@dataclass
class Group:
    """Folds over the same rows, and the program that serves them all."""

    key: bytes
    rows: Tensor | None
    """Sorted ids, None for all."""
    count: int
    folds: tuple[Fold, ...]
    program: Program
    size: int
    """Rows in a slice."""
    together: int = 1
    """Slices to collect, so that parameters are changed once for all of them."""

    def label(self, total: int) -> str:
        """Say which rows."""
        return f"all {total} examples" if self.rows is None else f"{self.count} of {total} examples"


def selection_key(subject: Subject, fold: Fold) -> tuple[bytes, Tensor | None]:
    """Identity of the rows a fold is over.

    Raises:
        Refusal: when it names rows that do not exist.
    """
    return _selected(fold.over, subject.examples)


@lru_cache(maxsize=256)
def _selected(over: Selection, total: int) -> tuple[bytes, Tensor | None]:
    rows = over.rows(total)
    if rows is None:
        return b"all", None
    return hashlib.blake2b(rows.numpy().tobytes(), digest_size=16).digest(), rows


def make_groups(subject: Subject, folds: Iterable[Fold], budget: int) -> list[Group]:
    """One group for each distinct set of rows, the whole data first."""
    by_key: dict[bytes, tuple[Tensor | None, list[Fold]]] = {}
    for fold in dict.fromkeys(folds):
        key, rows = selection_key(subject, fold)
        by_key.setdefault(key, (rows, []))[1].append(fold)
    groups = []
    for key, (rows, members) in sorted(by_key.items(), key=lambda item: item[0] != b"all"):
        program = Program(signal for fold in members for signal in fold.signals)
        count = subject.examples if rows is None else len(rows)
        size = rows_per_slice(subject, program, budget)
        groups.append(
            Group(
                key, rows, count, tuple(members), program, size, _together(subject, program, members, budget)
            )
        )
    return groups


def _together(subject: Subject, program: Program, folds: Sequence[Fold], budget: int) -> int:
    """Several slices where the changed parameters of all worlds are too many to be kept from slice to slice."""
    changes = {w.parameters for w in program.worlds if w.parameters}
    size = sum(p.nbytes for p in subject.parameters.values())
    if len(changes) * size <= kept_bytes(budget) or any(wait_for_each_other(f.signals) for f in folds):
        return 1
    return TOGETHER


__all__ = ["Group", "Refusal", "make_groups", "selection_key"]
