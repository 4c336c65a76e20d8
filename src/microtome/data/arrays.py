"""Batches out of tensors, and out of functions that give fresh iterators: both can be read many times."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from microtome.errors import SubjectError

if TYPE_CHECKING:
    import torch

BATCH_SIZE = 256


class ArrayBatches:
    """Batches ``(x, y)`` cut from two tensors; can be read any number of times."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor | None, batch_size: int = BATCH_SIZE) -> None:
        if y is not None and len(x) != len(y):
            raise SubjectError(
                "MT201", f"x holds {len(x)} rows and y {len(y)}", fix="give as many labels as inputs"
            )
        self.x, self.y, self.batch_size = x, y, batch_size

    def __len__(self) -> int:
        return -(-len(self.x) // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self.x), self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield self.x[rows] if self.y is None else (self.x[rows], self.y[rows])


class Replayed:
    """An iterable out of a function that gives a fresh iterator: it is called again for each pass."""

    def __init__(self, function: Callable[[], Iterable[Any]]) -> None:
        self.function = function

    def __iter__(self) -> Iterator[Any]:
        return iter(self.function())
