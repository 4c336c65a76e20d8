"""Values of the domain ``lipschitz``: a bound so far, and a linear map that may still be joined with others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from microtome.interpret.graph import Node
from microtome.interpret.interpreter import Domain
from microtome.interpret.interval_domain import Interval

Norm = Literal["2", "inf", "1"]
NORMS: tuple[Norm, ...] = ("2", "inf", "1")
LARGEST = 4096
"""Rows or columns up to which singular values of a matrix are computed."""
STEPS = 40


@dataclass(frozen=True, kw_only=True)
class Step:
    """One factor: a linear map with its norm, or a function with its steepest slope.

    ``factor`` is what the bound is multiplied by, ``estimate`` the norm that power iteration found from below.
    """

    node: Node
    kind: str
    factor: float
    estimate: float | None
    so_far: float


@dataclass(frozen=True, eq=False)
class Dense:
    """A matrix [out, in] that acts on the last dimension."""

    matrix: Tensor
    nodes: tuple[Node, ...]

    def norm(self, norm: Norm) -> float:
        """Exact up to rounding; for very large ones a bound."""
        if norm == "inf":
            return float(self.matrix.abs().sum(1).max())
        if norm == "1":
            return float(self.matrix.abs().sum(0).max())
        if min(self.matrix.shape) <= LARGEST:
            return float(torch.linalg.matrix_norm(self.matrix, ord=2))
        return math.sqrt(self.norm("inf") * self.norm("1"))

    def estimate(self) -> float | None:
        """Singular values leave nothing to estimate."""
        return None

    def rows_scaled(self, scale: Tensor) -> Dense:
        """``scale`` [out] times the result."""
        return Dense(self.matrix * scale[:, None], self.nodes)


@dataclass(frozen=True, eq=False)
class Conv:
    """A convolution of any dimension on an image of ``size``; ``result`` is the size it gives."""

    weight: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    extra: tuple[int, ...]
    groups: int
    size: tuple[int, ...]
    result: tuple[int, ...]
    nodes: tuple[Node, ...]

    @property
    def channels(self) -> int:
        """Channels that go in."""
        return self.weight.shape[0] if self.transposed else self.weight.shape[1] * self.groups

    def apply(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """The convolution without its bias."""
        w = self.weight if weight is None else weight
        return torch.ops.aten.convolution.default(
            x, w, None, self.stride, self.padding, self.dilation, self.transposed, self.extra, self.groups
        )

    def norm(self, norm: Norm) -> float:
        """Exact in the norms 1 and infinity, from above in the norm 2."""
        if norm != "2":
            ones, pull = self._pulled(self.weight.abs())
            return float((ones if norm == "inf" else pull).max())
        return min(self._by_frequencies(), math.sqrt(self.norm("inf") * self.norm("1")))

    def _pulled(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over rows and over columns of the matrix that the convolution is."""
        ones = torch.ones(1, self.channels, *self.size, dtype=weight.dtype, device=weight.device)
        out, pull = torch.func.vjp(lambda x: self.apply(x, weight), ones)[:2]
        return out, pull(torch.ones_like(out))[0]

    def _by_frequencies(self) -> float:
        """Largest singular value of the transfer matrices on a torus of the padded image's size.

        On that torus the convolution is a part of a circular one: rows at the edges are left out, columns are those
        of the image itself. With a stride of s the s frequencies that fall together stand side by side, over the root
        of s. A transposed convolution is the transpose of one on its result.
        """
        w = self.weight
        per = w.shape[0] // self.groups
        grouped = w.reshape(self.groups, per, *w.shape[1:])
        whole = self.result if self.transposed else self.size
        torus = [
            -(-max(n + 2 * p, d * (k - 1) + 1) // s) * s
            for n, p, d, k, s in zip(
                whole, self.padding, self.dilation, w.shape[2:], self.stride, strict=True
            )
        ]
        spread = grouped.new_zeros(*grouped.shape[:3], *torus)
        taps = [slice(0, d * (k - 1) + 1, d) for d, k in zip(self.dilation, w.shape[2:], strict=True)]
        spread[(slice(None), slice(None), slice(None), *taps)] = grouped
        transfer = torch.fft.fftn(spread, dim=tuple(range(3, spread.dim())))
        rank = len(torus)
        split = [size for n, s in zip(torus, self.stride, strict=True) for size in (s, n // s)]
        transfer = transfer.reshape(*transfer.shape[:3], *split)  # [groups, out, in, s, n / s, ...]
        folded, apart = [3 + 2 * i for i in range(rank)], [4 + 2 * i for i in range(rank)]
        matrices = transfer.permute(0, *apart, 1, 2, *folded)
        matrices = matrices.reshape(-1, per, transfer.shape[2] * math.prod(self.stride))
        return float(torch.linalg.matrix_norm(matrices, ord=2).max()) / math.sqrt(math.prod(self.stride))

    def estimate(self) -> float:
        """The norm 2 from below, by power iteration on the operator itself."""
        shape = (1, self.channels, *self.size)
        return power_iteration(self.apply, shape, self.weight.dtype, self.weight.device)

    def rows_scaled(self, scale: Tensor) -> Conv:
        """``scale`` [channels out] times the result."""
        if self.transposed:
            per = scale.reshape(self.groups, -1).repeat_interleave(self.weight.shape[0] // self.groups, 0)
            scaled = self.weight * per.reshape(*self.weight.shape[:2], *[1] * (self.weight.dim() - 2))
        else:
            scaled = self.weight * scale.reshape(-1, *[1] * (self.weight.dim() - 1))
        return replace(self, weight=scaled)


def power_iteration(
    apply: Callable[[Tensor], Tensor],
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    steps: int = STEPS,
) -> float:
    """Largest singular value of a linear map of inputs of a shape, from below; deterministic."""
    size = math.prod(shape)
    start = torch.sin(torch.arange(1, size + 1, dtype=dtype, device=device) ** 2).reshape(*shape)
    x = start / start.norm()
    value = 0.0
    for _ in range(steps):
        y, pull = torch.func.vjp(apply, x)[:2]
        value = float(y.norm())
        (back,) = pull(y)
        length = float(back.norm())
        if length == 0:
            break
        x = back / length
    return value


@dataclass(frozen=True, eq=False)
class Reach:
    """What a value can move: ``base`` times the norm of the open linear map.

    ``columns`` [entries] bound the slopes of a function just applied, entry by entry, where they are known (in a box).
    """

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    base: float = 1.0
    open: Dense | Conv | None = None
    columns: Tensor | None = None

    def bound(self, domain: Lipschitz) -> float:
        """The number, with all that is open closed."""
        value = self.base
        if self.columns is not None:
            value *= float(self.columns.max()) if self.columns.numel() else 0.0
        if self.open is None:
            return value
        factor = self.open.norm(domain.norm)
        value *= factor
        node = self.open.nodes[-1]
        if self.open not in domain.closed:
            domain.closed.append(self.open)
            names = " with ".join(dict.fromkeys(n.operation.split(".")[1] for n in self.open.nodes))
            estimate = self.open.estimate() if domain.norm == "2" and domain.estimates else None
            domain.steps.append(Step(node=node, kind=names, factor=factor, estimate=estimate, so_far=value))
        return value


@dataclass(frozen=True)
class Lipschitz(Domain):
    """The domain: a norm, and the ranges of values in a box where there is one."""

    name: ClassVar[str] = "lipschitz"
    value: ClassVar[type | None] = Reach
    norm: Norm = "2"
    ranges: Mapping[Node, Interval] = field(default_factory=dict, compare=False)
    estimates: bool = True
    steps: list[Step] = field(default_factory=list, compare=False)
    closed: list[Any] = field(default_factory=list, compare=False)
    notes: list[str] = field(default_factory=list, compare=False)

    def joined(self, parts: Sequence[float]) -> float:
        """Bound of values side by side."""
        if self.norm == "inf":
            return max(parts)
        return math.hypot(*parts) if self.norm == "2" else sum(parts)
