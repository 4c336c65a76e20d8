"""Features of which few are not zero, used as such: a bag of words need not be multiplied out.

A citation graph's features are 99 % zeros, and the first linear map over all of them is half the cost of an epoch of a
two-layer GCN. Inside :func:`sparse_features` the network is called as before, on the dense tensor; ``F.linear`` of that
very tensor, or of ``F.dropout`` of it, is taken over the places that are not zero, forward and backward. Everything
else the network does with it, it does with dense numbers: the answer is the same, to rounding, whatever the network.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

WORTH = 0.1
"""Share of entries that are not zero above which dense products are as fast."""
LOOKS = {
    "__get__",
    "dim",
    "is_floating_point",
    "numel",
    "size",
}
"""Functions that look at a tensor's shape or type, not at its numbers."""


class SparseFeatures:
    """The places of a matrix [n, d] that are not zero, by row and by column; it is not to be changed after.

    Attributes:
        dense: [n, d], on the CPU or a GPU, any floating type.
        row, column: [m] the places, row by row.
        values: [m] what stands there.
    """

    def __init__(self, dense: Tensor) -> None:
        self.dense = dense
        self.row, self.column = dense.detach().nonzero(as_tuple=True)
        self.values = dense.detach()[self.row, self.column]
        n, d = dense.shape
        self._starts = _starts(self.row, n)
        # A matrix by columns is its transpose by rows; which value goes where, once for all.
        self._turn = torch.argsort(self.column, stable=True)
        self._turned_starts, self._turned_row = _starts(self.column, d), self.row[self._turn]
        self._columns: dict[int, tuple[Tensor, Tensor]] = {}

    def filled(self, values: Tensor) -> Tensor:
        """[n, d] with these values [m] at the places, dense."""
        return torch.zeros_like(self.dense, dtype=values.dtype).index_put((self.row, self.column), values)

    def linear(self, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """[n, k] the product of the matrix with these values and a weight [k, d]."""
        if values.requires_grad:
            product = values.new_zeros(len(self.dense), len(weight)).index_add(
                0, self.row, values[:, None] * self._taken(weight)
            )
        else:
            product = _Linear.apply(weight, self, values)
        return product if bias is None else product + bias

    def _taken(self, weight: Tensor) -> Tensor:
        """[m, k] the weight's column for each place; kept while the weight is not trained."""
        if weight.requires_grad:
            return weight.T[self.column]
        known = self._columns.get(id(weight))
        if known is None or known[0] is not weight:
            known = self._columns[id(weight)] = weight, weight.T[self.column].contiguous()
        return known[1]

    def times(self, values: Tensor, dense: Tensor) -> Tensor:
        """[n, k] the matrix with these values, times [d, k]."""
        return _compressed(self._starts, self.column, values, self.dense.shape) @ dense

    def turned_times(self, values: Tensor, dense: Tensor) -> Tensor:
        """[d, k] its transpose, times [n, k]."""
        shape = self.dense.shape[::-1]
        return _compressed(self._turned_starts, self._turned_row, values[self._turn], shape) @ dense


def _starts(sorted_or_not: Tensor, count: int) -> Tensor:
    counts = torch.bincount(sorted_or_not, minlength=count)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _compressed(starts: Tensor, places: Tensor, values: Tensor, shape: Any) -> Tensor:
    with warnings.catch_warnings():  # torch calls the layout a beta
        warnings.filterwarnings("ignore", message=".*[Ss]parse.*")
        return torch.sparse_csr_tensor(starts, places, values, shape, check_invariants=False)


class _Linear(torch.autograd.Function):
    """x W^T, and its slope by W."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, held: SparseFeatures, values: Tensor) -> Tensor:
        ctx.held, ctx.values = held, values
        return held.times(values, weight.detach().T.contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Any:
        return ctx.held.turned_times(ctx.values, slope.contiguous()).T, None, None


class _Reading(TorchFunctionMode):
    def __init__(self, held: SparseFeatures, values: Tensor | None) -> None:
        super().__init__()
        self.held = held
        self.own = held.values if values is None else values
        # Tensors whose numbers are not their own: they stand for these values at the places of the features.
        self.standing: list[tuple[Tensor, Tensor]] = [] if values is None else [(held.dense, values)]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in LOOKS:
            return func(*args, **kwargs)
        values = self._values(args[0] if args else kwargs.get("input"))
        if func is F.linear and values is not None:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            return self.held.linear(values, weight, args[2] if len(args) > 2 else kwargs.get("bias"))
        if func is F.dropout and values is not None and not kwargs.get("inplace") and len(args) < 4:
            if not (args[2] if len(args) > 2 else kwargs.get("training", True)):
                return args[0] if args else kwargs["input"]
            others = {name: value for name, value in kwargs.items() if name != "input"}
            place = self.held.dense.new_zeros(()).expand(self.held.dense.shape)
            self.standing.append((place, func(values, *args[1:], **others)))
            return place
        if self.standing:
            args, kwargs = tree_map(self._meant, (args, kwargs))
        return func(*args, **kwargs)

    def _values(self, tensor: Any) -> Tensor | None:
        if tensor is self.held.dense:
            return self.own
        return next((values for place, values in self.standing if place is tensor), None)

    def _meant(self, value: Any) -> Any:
        """In place of a tensor that stands for others, those."""
        found = next((v for place, v in self.standing if place is value), None)
        return value if found is None else self.held.filled(found)


def prepared(x: Tensor) -> SparseFeatures | None:
    """The places of ``x``, for many calls; None where it is not worth it or a gradient by ``x`` is wanted."""
    if x.dim() != 2 or x.requires_grad or not x.is_floating_point() or float((x != 0).float().mean()) > WORTH:
        return None
    return SparseFeatures(x)


@contextmanager
def sparse_features(x: Tensor | SparseFeatures | None, values: Tensor | None = None) -> Iterator[None]:
    """Call networks on ``x`` [n, d] inside this, and first linear maps read only what is not zero.

    Without effect on a tensor of which more than :data:`WORTH` is not zero, or by which a gradient is wanted.

    Args:
        x: what the network is given; what :func:`prepared` made of it, for many calls.
        values: [m] to stand at the places instead of the tensor's own; a gradient may be wanted by them.
    """
    held = prepared(x) if isinstance(x, Tensor) else x
    if held is None:
        yield
        return
    with _Reading(held, values):
        yield


__all__ = ["SparseFeatures", "prepared", "sparse_features"]
