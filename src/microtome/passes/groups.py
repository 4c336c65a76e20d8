"""Pending folds, merged: equal folds once, folds over the same rows together, one program a group."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from microtome.errors import Refusal
from microtome.folds.base import Fold
from microtome.passes.memory import rows_per_slice
from microtome.signals.evaluate import Program
from microtome.subject import Subject


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

    def label(self, total: int) -> str:
        """Say which rows."""
        return f"all {total} examples" if self.rows is None else f"{self.count} of {total} examples"


def selection_key(subject: Subject, fold: Fold) -> tuple[bytes, Tensor | None]:
    """Identity of the rows a fold is over.

    Raises:
        Refusal: when it names rows that do not exist.
    """
    rows = fold.over.rows(subject.examples)
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
        groups.append(Group(key, rows, count, tuple(members), program, size))
    return groups


__all__ = ["Group", "Refusal", "make_groups", "selection_key"]
