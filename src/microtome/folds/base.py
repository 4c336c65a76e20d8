"""The contract of a fold, and which rows it speaks of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from microtome.errors import Refusal
from microtome.signals.expression import Signal
from microtome.signals.noise import row_uniform

State = dict[str, Tensor]
DIFFERENT_LENGTH = "rows of different shape (sequences of different length) cannot be joined"


class Selection(ABC):
    """Which examples a fold is over."""

    @abstractmethod
    def rows(self, total: int) -> Tensor | None:
        """Sorted int64 example ids out of ``total``, or None for all."""


@dataclass(frozen=True)
class All(Selection):
    """Every example."""

    def rows(self, total: int) -> Tensor | None:
        """None: all of them."""
        return None


@dataclass(frozen=True)
class Sample(Selection):
    """A fixed random subset: the ``count`` examples with the smallest hash of (seed, id).

    The same whatever the batch size, and samples of one seed are nested.
    """

    count: int
    seed: int = 0

    def rows(self, total: int) -> Tensor | None:
        """All when there are no more than ``count``."""
        if total <= self.count:
            return None
        key = row_uniform(torch.arange(total), self.seed)
        return key.topk(self.count, largest=False).indices.sort().values


@dataclass(frozen=True)
class Rows(Selection):
    """Named examples."""

    ids: tuple[int, ...]

    def rows(self, total: int) -> Tensor | None:
        """The ids, sorted.

        Raises:
            Refusal: for an id outside the data.
        """
        wrong = [i for i in self.ids if not 0 <= i < total]
        if wrong:
            raise Refusal(f"example {wrong[0]} does not exist: the data has {total} (0..{total - 1})")
        return torch.tensor(sorted(set(self.ids)), dtype=torch.long)


@dataclass(frozen=True, kw_only=True)
class Fold(ABC):
    """A mergeable accumulation. Subclasses are frozen dataclasses.

    Attributes:
        signals: what it is made of; ``lift`` receives their values in this order.
        over: which examples.
    """

    additive: ClassVar[bool] = False
    """Whether values are sums over the slice (gradients) rather than one entry a row."""

    signals: tuple[Signal, ...]
    over: Selection = All()

    @abstractmethod
    def lift(self, *values: Tensor) -> State | None:
        """State of one slice; None when it holds no rows."""

    @abstractmethod
    def merge(self, a: State, b: State) -> State:
        """Join two states. Associative, and commutative to rounding. May reuse the memory of ``a``."""

    @abstractmethod
    def result(self, state: State) -> Any:
        """Read the answer off a non-empty state."""

    def join(self, a: State | None, b: State | None) -> State | None:
        """Merge, with None as the empty state."""
        if a is None:
            return b
        if b is None:
            return a
        if any(a[k].device != v.device and v.dim() for k, v in b.items()):
            b = {k: v.to(a[k].device) for k, v in b.items()}  # a state read back from disk lives on the CPU
        try:
            return self.merge(a, b)
        except RuntimeError as error:
            if any(k in b and v.dim() and v.shape[1:] != b[k].shape[1:] for k, v in a.items()):
                raise Refusal(DIFFERENT_LENGTH) from error
            raise

    def read(self, state: State | None) -> Any:
        """The result.

        Raises:
            Refusal: when no row came in.
        """
        if state is None:
            raise Refusal("no row to measure on")
        return self.result(state)
