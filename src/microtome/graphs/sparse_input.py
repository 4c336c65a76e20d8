"""Calling a network on features of which few are not zero: its first linear map reads only those."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_LOOKS = {
    "size",
    "dim",
    "shape",
    "device",
    "dtype",
    "__get__",
    "numel",
    "is_floating_point",
    "is_sparse",
    "layout",
}


class _UsedOtherwiseError(Exception):
    """The network does something else with its features than multiply them by a matrix."""


class SparseInput:
    """Features [n, d] with fixed places and changing values.

    A network that begins with ``F.linear`` (or dropout, in eval mode, before it) has that product taken over the places
    alone; any other gets the dense matrix. Which of the two it is, is found on the first call.

    Args:
        dense: [n, d].
        row, column: [m] the places that are not zero.
    """

    def __init__(self, dense: Tensor, row: Tensor, column: Tensor) -> None:
        self.dense, self.row, self.column = dense, row, column
        self.sparse = True
        self.columns: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(
        self, model: nn.Module, values: Tensor | None, edge_index: Tensor, given: Mapping[str, Any]
    ) -> Tensor:
        """The network's output with these values, [m]; None for the features as they are."""
        if values is None:
            return model(self.dense, edge_index, **given)
        if self.sparse:
            try:
                with _Reading(self, values):
                    return model(self.dense, edge_index, **given)
            except _UsedOtherwiseError:
                self.sparse = False
        place = self.row * self.dense.shape[1] + self.column
        filled = torch.zeros(self.dense.numel(), dtype=values.dtype).index_put((place,), values)
        return model(filled.view_as(self.dense), edge_index, **given)

    def linear(self, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """[n, k] the product with a weight [k, d]."""
        known = self.columns.get(id(weight))
        if known is None or known[0] is not weight:
            known = self.columns[id(weight)] = weight, weight.detach().T[self.column].contiguous()
        product = values.new_zeros(len(self.dense), len(weight)).index_add(
            0, self.row, values[:, None] * known[1]
        )
        return product if bias is None else product + bias.detach()


class _Reading(TorchFunctionMode):
    def __init__(self, held: SparseInput, values: Tensor) -> None:
        super().__init__()
        self.held, self.values = held, values

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        x = self.held.dense
        if not any(a is x for a in args) and not any(v is x for v in kwargs.values()):
            return func(*args, **kwargs)
        if func is F.linear and args[0] is x:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            return self.held.linear(self.values, weight, args[2] if len(args) > 2 else kwargs.get("bias"))
        if func is F.dropout and not (args[2] if len(args) > 2 else kwargs.get("training", True)):
            return x
        if getattr(func, "__name__", "") in _LOOKS:
            return func(*args, **kwargs)
        raise _UsedOtherwiseError


__all__ = ["SparseInput"]
