"""Transposed maps that cost one product: what backward domains share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from microtome.interpret.interpreter import At


def floating(at: At) -> At:
    """The same place, where operands that hold no real numbers (a mask that depends on the input) want nothing."""
    real = frozenset(i for i in at.tracked if (d := at.node.operands[i].dtype) is None or d.is_floating_point)
    return at if real == at.tracked else dataclasses.replace(at, tracked=real)


def to_shape(value: Tensor, shape: torch.Size) -> Tensor:
    """Sum over what broadcasting repeated."""
    return value if value.shape == shape else value.sum_to_size(shape)


def back_through_convolution(s: Tensor, x: Tensor, weight: Tensor, geometry: Sequence[Any]) -> Tensor:
    """Transpose of a convolution in its input; only the shape of ``x`` matters.

    Args:
        s: shaped as the result.
        x: shaped as the input.
        weight: the kernel.
        geometry: stride, padding, dilation, transposed, output padding, groups.
    """
    found: Tensor = torch.ops.aten.convolution_backward(s, x, weight, None, *geometry, [True, False, False])[
        0
    ]
    return found
