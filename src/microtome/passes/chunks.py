"""Cutting the stream of batches into slices for each group of rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from microtome.batches import Batch, concatenate, joinable, split


class Chunker:
    """Collects the rows of one group from the loader's batches and gives slices of ``size`` rows.

    Args:
        rows: sorted int64 ids of the group, or None for all.
        size: rows in a slice.
        skip: rows already done by an interrupted run.
    """

    def __init__(self, rows: Tensor | None, size: int, *, skip: int = 0) -> None:
        self.rows, self.size, self.skip = rows, size, skip
        self._waiting: list[Batch] = []
        self._count = 0

    def feed(self, batch: Batch) -> Iterator[Batch]:
        """Slices that are complete now."""
        part = self._mine(batch)
        if part is None or not len(part):
            return
        if self.skip:
            done = min(self.skip, len(part))
            self.skip -= done
            if done == len(part):
                return
            part = part.take(slice(done, None))
        if not part.divisible:
            yield part
            return
        if self._waiting and not joinable(self._waiting[-1], part):
            yield from self.flush()
        self._waiting.append(part)
        self._count += len(part)
        if self._count >= self.size:
            yield from self._cut(keep_rest=True)

    def flush(self) -> Iterator[Batch]:
        """What is left at the end of the data."""
        if self._waiting:
            yield from self._cut(keep_rest=False)

    def _cut(self, keep_rest: bool) -> Iterator[Batch]:
        joined = concatenate(self._waiting)
        self._waiting, self._count = [], 0
        for piece in split(joined, self.size):
            if keep_rest and len(piece) < self.size:
                self._waiting, self._count = [piece], len(piece)
            else:
                yield piece

    def _mine(self, batch: Batch) -> Batch | None:
        if self.rows is None:
            return batch
        first, last = int(batch.rows[0]), int(batch.rows[-1])
        low = int(torch.searchsorted(self.rows, first))
        high = int(torch.searchsorted(self.rows, last, right=True))
        if low == high:
            return None
        return batch.take(self.rows[low:high] - first)


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """Cut a slice in two."""
    middle = len(batch) // 2
    return batch.take(slice(0, middle)), batch.take(slice(middle, None))
