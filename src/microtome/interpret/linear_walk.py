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

# Slope and offset below, slope and offset above; no offset below where it is zero everywhere.
Lines = tuple[Tensor, Tensor | None, Tensor, Tensor]

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


@dataclass(frozen=True, eq=False, slots=True)
class Early:
    """Rows that met no relaxation yet: the same for every example, and their negation bounds from above.

    ``a`` [n, 1, *shape of one example], or [n, *shape] where examples cannot be told apart. So the linear
    operations behind a relaxed operand are transposed once for a batch, not once for each example and side.
    """

    a: Tensor


@dataclass(eq=False)
class Walk:
    """Constants gathered on the way [s, b], their magnitudes, lines by node, slopes to optimise.

    ``pick`` [count, b] says which ``Early`` row each example wants (all, without it); with ``both``, rows for
    upper bounds follow those for lower ones.
    """

    axes: Mapping[Node, Layout | None] | None
    examples: int
    lines: dict[Node, Lines]
    slopes: dict[tuple[Node, str], Tensor] | None = None
    pick: Tensor | None = None
    both: bool = False
    constant: Any = 0.0
    size: Any = 0.0
    early: Any = 0.0
    early_size: Any = 0.0
    sharing: bool = False
    """While a rule runs on ``Early`` rows: constants go to ``early``, one number for each row."""

    def restart(self) -> None:
        """Walk again with the same slopes."""
        self.constant, self.size, self.early, self.early_size = 0.0, 0.0, 0.0, 0.0

    def add(self, node: Node, terms: Tensor, size: Tensor | None = None) -> None:
        """Add terms [s, *shape of node's value] to the constants of their examples."""
        total = self.per_example(node, terms)
        self._gather(total, total if size is None else self.per_example(node, size))

    def _gather(self, total: Tensor, size: Tensor) -> None:
        size = size.detach().abs()
        if self.sharing:
            self.early, self.early_size = self.early + total, self.early_size + size
        else:
            self.constant, self.size = self.constant + total, self.size + size

    def inner(self, node: Node, a: Tensor, constant: Tensor) -> None:
        """Add the sums of a [s, *shape] times a constant of that shape, or one for each row."""
        self.add(node, a * constant)

    def per_channel(self, node: Node, a: Tensor, constant: Tensor) -> None:
        """``inner`` for one number per channel, [c]: a sum over positions comes first."""
        if self.counts_first(node, a[0]) or self.sharing:
            self._totals((a.flatten(3).sum(3) if a.dim() > 3 else a) @ constant)
        else:
            self.inner(node, a, constant.reshape(-1, *[1] * (a.dim() - 3)))

    def _totals(self, total: Tensor) -> None:
        if self.axes is None:
            total = total.sum(1, keepdim=True)
        self._gather(total, total)

    def put_in(self, node: Node, a: Tensor, center: Tensor, reach: Tensor) -> None:
        """Put the box in at its place: ``reach`` is its radius and its magnitude."""
        size = a.abs()
        radius, magnitude = (self.per_example(node, size * each) for each in reach)
        self._gather(self.per_example(node, a * center) - radius, magnitude)

    def per_example(self, node: Node, terms: Tensor) -> Tensor:
        """Sum [s, *shape] to [s, b]."""
        if self.axes is None:
            return terms.flatten(1).sum(1, keepdim=True)
        layout = self.axes.get(node)
        if layout is None:
            raise rows_unknown(node)
        if layout == _FIRST and (self.sharing or terms.shape[1] == self.examples):
            return terms.flatten(2).sum(2) if terms.dim() > 2 else terms
        return by_example(terms, layout, self.examples).sum(2)

    def counts_first(self, node: Node, value: Any) -> bool:
        """Whether the first axis of the value is that of the examples and nothing else (or there is no such axis)."""
        if self.axes is None:
            return True
        return self.axes.get(node) == _FIRST and tuple(value.shape[:1]) == (self.examples,)

    def chosen(self, rows: Early) -> Tensor:
        """The rows each example wants [count, b, *shape of one example], lower bounds only."""
        a = rows.a
        if self.axes is None:
            return a if self.pick is None else a.index_select(0, self.pick[:, 0])
        if self.pick is None:
            return a.expand(-1, self.examples, *a.shape[2:]) if a.shape[1] == 1 else a
        count, examples = self.pick.shape
        return a.flatten(0, 1).index_select(0, self.pick.flatten()).reshape(count, examples, *a.shape[2:])

    def unfolded(self, rows: Early | Tensor) -> Tensor:
        """Rows of every example and side of their own [s, *shape of the value]."""
        if isinstance(rows, Tensor):
            return rows
        a = self.chosen(rows)
        return torch.cat([a, -a]) if self.both else a

    def settled(self) -> tuple[Any, Any]:
        """Constants [s, b] and their magnitudes, those of early rows included."""
        if isinstance(self.early, float):
            return self.constant, self.size
        ends = []
        for value, sign in ((self.early, -1.0), (self.early_size, 1.0)):
            own = value.expand(-1, self.examples) if self.pick is None else value
            if self.pick is not None:
                own = own[:, 0][self.pick] if own.shape[1] == 1 else own.gather(0, self.pick)
            ends.append(torch.cat([own, sign * own]) if self.both else own)
        return self.constant + ends[0], self.size + ends[1]

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


_FIRST = Layout(0)


def fold_to(share: Tensor, like: Any) -> Tensor:
    """Sum [s, *broadcast shape] to [s, *shape of like]."""
    shape = tuple(like.shape)
    extra = share.dim() - 1 - len(shape)
    if extra:
        share = share.flatten(1, extra).sum(1) if extra else share
    summed = [i + 1 for i, size in enumerate(shape) if size == 1 and share.shape[i + 1] != 1]
    return share.sum(summed, keepdim=True) if summed else share


def through_lines(
    at: At, node: Node, a: Tensor | Early, below: Tensor, low: Tensor | None, above: Tensor, high: Tensor
) -> Tensor:
    """Replace f(x) by below x + low or above x + high.

    Each coefficient is multiplied by the one slope that its sign chooses (the other factor is an exact zero), so
    that slopes which differ by orders of size do not cancel.
    """
    walk: Walk = at.state
    rows = walk.chosen(a) if isinstance(a, Early) else a
    positive, negative = rows.clamp(min=0), rows.clamp(max=0)
    if isinstance(a, Tensor) or not walk.both:
        walk.inner(node, negative, high)
        if low is not None:
            walk.inner(node, positive, low)
        return _chosen_slopes(positive, below, negative, above)
    # The negated rows: what was positive is negative now.
    shape = (2 * len(rows), *rows.shape[1:])
    found = torch.empty(shape, dtype=rows.dtype, device=rows.device)
    first, second = found.split(len(rows))
    torch.mul(positive, below, out=first).addcmul_(negative, above)
    torch.mul(positive, above, out=second).addcmul_(negative, below).neg_()
    terms = [negative * high, positive * -high]
    if low is not None:
        terms = [terms[0] + positive * low, terms[1] - negative * low]
    totals = torch.cat([walk.per_example(node, term) for term in terms])
    walk._gather(totals, totals)
    return found


def _chosen_slopes(positive: Tensor, below: Tensor, negative: Tensor, above: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        return positive * below + negative * above
    return (positive * below).addcmul_(negative, above)


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


def fitted_lines(at: At, shape: Curve, x: Interval) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
        walk.lines[at.node] = (below, None, chord, high)
    below, low, above, high = walk.lines[at.node]
    if walk.slopes is None:
        return below, low, above, high
    open_ = (lower < 0) & (upper > 0)
    slope = walk.slope(at.node, "below", below, rows, 0.0, 1.0)
    return torch.where(open_, slope, below), low, above, high
