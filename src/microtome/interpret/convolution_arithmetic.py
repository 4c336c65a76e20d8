"""Convolution arithmetic: sizes of every window operation, the inverse question, a convolution as a matrix.

Along one axis, for input size i, kernel k, stride s, padding p, dilation d (Dumoulin & Visin 2016):

    convolution, pooling   o = floor((i + 2p - d(k - 1) - 1) / s) + 1
    leftover               a = (i + 2p - d(k - 1) - 1) mod s, input entries that no window reaches
    transposed             i' = (o - 1) s - 2p + d(k - 1) + 1 + a

so that a transposed convolution with output padding a gives back the shape i, not the values: it is the
transposed matrix of the convolution, not its inverse.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from microtome.errors import UsageError


@dataclass(frozen=True, order=True)
class Window:
    """A window along one axis.

    Attributes:
        kernel, stride, padding, dilation: as torch calls them; padding on both sides.
    """

    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    def __post_init__(self) -> None:
        if self.kernel < 1 or self.stride < 1 or self.dilation < 1 or self.padding < 0:
            raise UsageError(
                "MT320",
                f"{self} is no window",
                fix="kernel, stride and dilation are at least 1, padding at least 0",
            )

    @property
    def reach(self) -> int:
        """Input entries from the first to the last that one window touches: d(k - 1) + 1."""
        return self.dilation * (self.kernel - 1) + 1

    def fits(self, size: int) -> bool:
        """Whether a padded input of this size holds a window."""
        return size >= 1 and size + 2 * self.padding >= self.reach

    def output(self, size: int) -> int:
        """Size after a convolution or a pool.

        Raises:
            UsageError: MT320, when no window fits.
        """
        return self._room(size) // self.stride + 1

    def leftover(self, size: int) -> int:
        """Entries at the end that no window reaches; the ``output_padding`` that restores the size."""
        return self._room(size) % self.stride

    def pooled(self, size: int, ceil: bool = False) -> int:
        """Size after a pool; with ``ceil`` a last window may hang over, if it starts before the right padding."""
        if not ceil:
            return self.output(size)
        count = -(-self._room(size) // self.stride) + 1
        return count - 1 if (count - 1) * self.stride >= size + self.padding else count

    def transposed(self, size: int, leftover: int = 0) -> int:
        """Size after a transposed convolution; below 1 there is none.

        Raises:
            UsageError: MT320, for a leftover torch would not take either.
        """
        if not 0 <= leftover < max(self.stride, self.dilation):
            raise UsageError(
                "MT320",
                f"a leftover of {leftover} with stride {self.stride} and dilation {self.dilation}",
                fix="it must be smaller than the larger of both",
            )
        return (size - 1) * self.stride - 2 * self.padding + self.reach + leftover

    def _room(self, size: int) -> int:
        if not self.fits(size):
            raise UsageError(
                "MT320",
                f"a window that reaches over {self.reach} fits nowhere into {size} + 2 x {self.padding}",
                fix="more padding, a smaller kernel or dilation",
            )
        return size + 2 * self.padding - self.reach


def windows(
    size: int,
    output: int,
    *,
    kernels: Iterable[int] = range(1, 8),
    strides: Iterable[int] = range(1, 5),
    paddings: Iterable[int] = range(4),
    dilations: Iterable[int] = (1, 2),
) -> Iterator[Window]:
    """The inverse question: the windows that take an input of ``size`` to ``output``."""
    for kernel, stride, padding, dilation in itertools.product(kernels, strides, paddings, dilations):
        window = Window(kernel, stride, padding, dilation)
        if window.fits(size) and window.output(size) == output:
            yield window


def convolution_matrix(
    weight: Tensor,
    sizes: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """The sparse matrix C of a convolution: ``conv(x).flatten() = C @ x.flatten()`` for one example.

    ``C.T @ y`` is the transposed convolution of y with the same weight and ``output_padding`` the leftover.

    Args:
        weight: [out, in / groups, *kernel] as of a convolution.
        sizes: of the input along its spatial axes.

    Returns:
        Sparse [out * prod(output sizes), in * prod(sizes)].
    """
    rank = len(sizes)
    kernel = tuple(weight.shape[2:])
    if len(kernel) != rank:
        raise UsageError("MT320", f"a kernel of {len(kernel)} axes on an input of {rank}")
    options = [_each(option, rank) for option in (stride, padding, dilation)]
    axes = [Window(k, s, p, d) for k, s, p, d in zip(kernel, *options, strict=True)]
    outs = [axis.output(size) for axis, size in zip(axes, sizes, strict=True)]
    channels, inside = weight.shape[0], weight.shape[1]
    positions, entries = math.prod(outs), math.prod(sizes)
    where = torch.stack(torch.meshgrid(*(torch.arange(o) for o in outs), indexing="ij")).reshape(rank, -1)
    places = torch.arange(positions)
    rows, columns, values = [], [], []
    out_channel = torch.arange(channels)[:, None, None]
    in_channel = torch.arange(inside)[None, :, None]
    first = out_channel // (channels // groups) * inside  # the first input channel of the group
    taps = weight.detach().cpu().flatten(2)
    for tap, offset in enumerate(itertools.product(*map(range, kernel))):
        at = torch.zeros_like(places)
        inner = torch.ones_like(places, dtype=torch.bool)
        for axis, (window, size, k) in enumerate(zip(axes, sizes, offset, strict=True)):
            along = where[axis] * window.stride - window.padding + k * window.dilation
            inner &= (along >= 0) & (along < size)
            at = at * size + along
        shape = (channels, inside, int(inner.sum()))
        rows.append((out_channel * positions + places[inner]).expand(shape).reshape(-1))
        columns.append(((first + in_channel) * entries + at[inner]).expand(shape).reshape(-1))
        values.append(taps[:, :, tap, None].expand(shape).reshape(-1))
    index = torch.stack([torch.cat(rows), torch.cat(columns)])
    whole = (channels * positions, inside * groups * entries)
    return torch.sparse_coo_tensor(index, torch.cat(values), whole, check_invariants=True).coalesce()


def _each(option: int | Sequence[int], rank: int) -> tuple[int, ...]:
    return (option,) * rank if isinstance(option, int) else tuple(option)
