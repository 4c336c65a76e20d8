"""The linear-bounds domain, the state of one walk, and lines that replace a function of one number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from microtome.errors import SubjectError
from microtome.interpret.curves import Curve
from microtome.interpret.graph import Node
from microtome.interpret.interpreter import At, Domain
from microtome.interpret.interval import Interval, Intervals
from microtome.interpret.operations import aten, overloads

Lines = tuple[Tensor, Tensor, Tensor, Tensor]  # slope and offset below, slope and offset above

MONOTONE_KINKED = frozenset(overloads("relu", "leaky_relu"))
EXACT = Intervals(rounding="typical")


class LinearBounds(Domain):
    """Backward linear bounds; the state of a walk is a ``Walk``."""

    name: ClassVar[str] = "linear bounds"


class Layout(NamedTuple):
    """The axis of a value that counts examples; ``inner`` where it counts positions first (t b, not b t)."""

    axis: int
    inner: bool = False


def by_example(x: Tensor, layout: Layout | None, examples: int) -> Tensor:
    """[s, *shape] -> [s, b, entries]."""
    if layout is None:
        return x.flatten(1)[:, None]
    axis = layout.axis + 1
    split = x.unflatten(axis, (-1, examples) if layout.inner else (examples, -1))
    return split.movedim(axis + layout.inner, 1).flatten(2)


def from_examples(rows: Tensor, shape: torch.Size, layout: Layout | None) -> Tensor:
    """[s, b, entries] -> [s, *shape]."""
    if layout is None:
        return rows.reshape(len(rows), *shape)
    axis, examples = layout.axis, rows.shape[1]
    rest = [*shape[:axis], shape[axis] // examples, *shape[axis + 1 :]]
    moved = rows.reshape(len(rows), examples, *rest)
    return moved.movedim(1, axis + 1 + layout.inner).flatten(axis + 1, axis + 2).reshape(len(rows), *shape)


def rows_unknown(node: Node) -> SubjectError:
    """The examples of a batch cannot be told apart at this node."""
    return SubjectError(
        "MT315",
        "linear bounds cannot tell the examples of the batch apart",
        where=node.place(),
        fix="give one example at a time",
    )


@dataclass(eq=False)
class Walk:
    """Constants gathered on the way [s, b], their magnitudes, lines by node, slopes to optimise."""

    axes: Mapping[Node, Layout | None] | None
    examples: int
    lines: dict[Node, Lines]
    slopes: dict[tuple[Node, str], Tensor] | None = None
    constant: Any = 0.0
    size: Any = 0.0

    def restart(self) -> None:
        """Walk again with the same slopes."""
        self.constant, self.size = 0.0, 0.0

    def add(self, node: Node, terms: Tensor, size: Tensor | None = None) -> None:
        """Add terms [s, *shape of node's value] to the constants of their examples."""
        total = self.per_example(node, terms)
        self.constant = self.constant + total
        magnitude = total if size is None else self.per_example(node, size)
        self.size = self.size + magnitude.detach().abs()

    def inner(self, node: Node, a: Tensor, constant: Tensor) -> None:
        """Add the sums of a [s, *shape] times a constant of that shape, or one for each row."""
        if self.axes is None or self.axes.get(node) != Layout(0) or constant.dim() != a.dim() - 1:
            return self.add(node, a * constant)
        total = torch.einsum("sbn,bn->sb", a.flatten(2), constant.expand(a.shape[1:]).flatten(1))
        self.constant = self.constant + total
        self.size = self.size + total.detach().abs()
        return None

    def per_example(self, node: Node, terms: Tensor) -> Tensor:
        """Sum [s, *shape] to [s, b]."""
        if self.axes is None:
            return terms.flatten(1).sum(1, keepdim=True)
        layout = self.axes.get(node)
        if layout is None:
            raise rows_unknown(node)
        return by_example(terms, layout, self.examples).sum(2)

    def slope(
        self, node: Node, which: str, start: Tensor, rows: int, low: Any = None, high: Any = None
    ) -> Tensor:
        """The slope to use: the given one, or one per row that is optimised, kept in its range."""
        if self.slopes is None:
            return start
        key = (node, which)
        if key not in self.slopes:
            self.slopes[key] = start.detach().expand(rows, *start.shape).clone().requires_grad_()
        slope = self.slopes[key]
        if low is not None:
            with torch.no_grad():
                slope.clamp_(low, high)
        return slope


def fold_to(share: Tensor, like: Any) -> Tensor:
    """Sum [s, *broadcast shape] to [s, *shape of like]."""
    shape = tuple(like.shape)
    extra = share.dim() - 1 - len(shape)
    if extra:
        share = share.flatten(1, extra).sum(1) if extra else share
    summed = [i + 1 for i, size in enumerate(shape) if size == 1 and share.shape[i + 1] != 1]
    return share.sum(summed, keepdim=True) if summed else share


def through_lines(
    at: At, node: Node, a: Tensor, below: Tensor, low: Tensor, above: Tensor, high: Tensor
) -> Tensor:
    """Replace f(x) by below x + low or above x + high."""
    negative = a.clamp(max=0)
    at.state.inner(node, negative, high)
    if bool(low.detach().any()):  # never for ReLU
        at.state.inner(node, a - negative, low)
    return a * torch.where(a > 0, below, above)  # chosen, never summed: slopes may differ by orders of size


def lines_of(at: At, shape: Curve, x: Interval, rows: int) -> Lines:
    """Lines of a curve on its operand's range, with slopes optimised where the walk does that."""
    walk: Walk = at.state
    if at.node.target == aten.relu.default:
        return _relu_lines(at, x, rows)
    cached = walk.lines.get(at.node)
    if cached is None:
        cached = walk.lines[at.node] = fitted_lines(at, shape, x)
    below, low, above, high = cached
    if walk.slopes is None:
        return cached
    k_below = walk.slope(at.node, "below", below, rows)
    k_above = walk.slope(at.node, "above", above, rows)
    low = shape.offset(k_below, x.lower.expand_as(k_below), x.upper.expand_as(k_below))[0]
    high = shape.offset(k_above, x.lower.expand_as(k_above), x.upper.expand_as(k_above))[1]
    return k_below, *_slack(shape, x, low, -1), k_above, *_slack(shape, x, high, 1)


def _slack(shape: Curve, x: Interval, offset: Tensor, sign: int) -> tuple[Tensor]:
    scale = x.magnitude + offset.detach().abs()
    return (offset + sign * (shape.ulps + 4) * torch.finfo(x.dtype).eps * scale,)


def fitted_lines(at: At, shape: Curve, x: Interval) -> Lines:
    """Lines of least area; exact offsets, widened by the curve's rounding."""
    outside = (x.lower <= 0) & (x.upper >= 0) if shape.pole else x.lower < shape.domain[0]
    if bool(outside.any()) or not bool(torch.isfinite(x.lower).all() and torch.isfinite(x.upper).all()):
        raise SubjectError(
            "MT317",
            f"'{at.node.operation}' may leave its domain within the box",
            where=at.node.place(),
            fix="use a smaller radius",
        )
    with torch.no_grad():
        below, above = shape.slopes(x.lower, x.upper)
        low, high = shape.offset(below, x.lower, x.upper)[0], shape.offset(above, x.lower, x.upper)[1]
        return below, *_slack(shape, x, low, -1), above, *_slack(shape, x, high, 1)


def _relu_lines(at: At, x: Interval, rows: int) -> Lines:
    """Above the chord, below slope 0 or 1 (the smaller area) or any slope between."""
    walk: Walk = at.state
    lower, upper = x.lower, x.upper
    if at.node not in walk.lines:
        open_ = (lower < 0) & (upper > 0)
        on = (lower >= 0).to(x.dtype)
        chord = torch.where(open_, upper / (upper - lower).clamp(min=torch.finfo(x.dtype).tiny), on)
        high = torch.where(
            open_, -lower * chord * (1 + 4 * torch.finfo(x.dtype).eps), torch.zeros_like(lower)
        )
        below = torch.where(open_, (upper > -lower).to(x.dtype), on)
        walk.lines[at.node] = (below, torch.zeros_like(lower), chord, high)
    below, low, above, high = walk.lines[at.node]
    if walk.slopes is None:
        return below, low, above, high
    open_ = (lower < 0) & (upper > 0)
    slope = walk.slope(at.node, "below", below, rows, 0.0, 1.0)
    return torch.where(open_, slope, below), low, above, high
