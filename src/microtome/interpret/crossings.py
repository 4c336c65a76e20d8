"""Where straight lines and curves cross the boundaries of linear regions.

Along a line every value of a piecewise-linear network is piecewise linear. ``line_crossings`` walks the program
once with the values at a few points of each line; where an operand of a switch changes its piece between two
neighbouring points, the crossing is solved for, becomes a point itself, and all values that are still needed are
interpolated there (they are linear between neighbours). After the last switch neighbouring points lie in one region:
nothing is sampled and nothing is missed (Sotoudeh & Thakur 2019). Crossings closer than ``SAME`` of the line's
length are one.

Along a curve there is no such formula: ``curve_crossings`` halves every interval at whose ends the patterns differ.
A region that is entered and left between two of its first samples is missed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from microtome.errors import SubjectError
from microtome.interpret.graph import Graph, Node
from microtome.interpret.interpreter import forward
from microtome.interpret.patterns import (
    KINKED,
    candidates,
    doubled,
    kinks,
    only_input,
    operands_of,
    patterns_at,
    switches,
    widened,
)

SAME = 1e-11
TOGETHER = 1 << 28
"""Bytes that the values at all points of lines may take before lines are walked apart."""
LIMIT = 1 << 29
"""Bytes beyond which a single line is refused."""


@dataclass(frozen=True, eq=False)
class Crossings:
    """Where lines change region: ``line`` [c] and place ``at`` [c] in 0..1 along it, in order; ``lines`` of them."""

    line: Tensor
    at: Tensor
    lines: int

    @property
    def counts(self) -> Tensor:
        """[lines] boundaries crossed by each; the regions are one more."""
        return torch.bincount(self.line, minlength=self.lines)


@dataclass(eq=False)
class _Points:
    """The points of all lines, in order of the lines and along them."""

    line: Tensor
    at: Tensor
    values: dict[Node, Any] = field(default_factory=dict)
    peak: int = 1
    """Most bytes that values took."""
    source: Tensor = field(init=False)
    """[points] of each new point the one before it among the old ones, and how far beyond it lies."""
    share: Tensor = field(init=False)

    def insert(self, left: Tensor, weight: Tensor) -> None:
        """New points at ``weight`` [c] of the way from point ``left`` [c] to the next one; all values follow."""
        place = left.double() + weight
        order = place.argsort(stable=True)
        left, weight = left[order], weight[order]
        fresh = torch.ones_like(left, dtype=torch.bool)
        span = (self.at[left + 1] - self.at[left]) * weight
        near = (left[1:] == left[:-1]) & (span[1:] - span[:-1] < SAME)
        fresh[1:] = ~near
        left, weight = left[fresh], weight[fresh]
        every = torch.arange(len(self.at), device=left.device)
        source = torch.cat([every, left])
        share = torch.cat([torch.zeros_like(self.at), weight])
        order = (source.double() + share).argsort(stable=True)
        self.source, self.share = source[order], share[order]
        before, self.line = len(self.at), self.line[self.source]
        self.at = self.between(self.at)
        for node, value in self.values.items():
            self.values[node] = self._follow(node, value, before)

    def afford(self, node: Node, more: int) -> None:
        """Note what the values will take with so many more points.

        Raises:
            SubjectError: MT344 when that is too much.
        """
        now = len(self.at)
        live = [v for v in self.values.values() if isinstance(v, Tensor) and v.dim() and len(v) == now]
        size = sum(v.numel() * v.element_size() for v in live) * (now + more) // max(now, 1)
        self.peak = max(self.peak, size)
        if size > LIMIT:
            raise SubjectError(
                "MT344",
                f"lines cross so many boundaries that their values take {size >> 20} MiB and more",
                where=node.place(),
                fix="take shorter lines, fewer of them, or a smaller network",
            )

    def between(self, value: Tensor) -> Tensor:
        """[points, ...] interpolated at the new points."""
        low = value[self.source]
        moved = (self.share > 0).nonzero()[:, 0]
        if not value.is_floating_point():
            return low
        share = self.share[moved].reshape(-1, *[1] * (value.dim() - 1))
        ahead = value[self.source[moved] + 1]
        low[moved] = low[moved] + share.to(value) * (ahead - low[moved])
        return low

    def _follow(self, node: Node, value: Any, before: int) -> Any:
        if node.kind not in ("input", "operation"):
            return value
        if isinstance(value, int) and not isinstance(value, bool) and node.shape is None:
            return value // before * len(self.at) if value % before == 0 and value else value
        if not isinstance(value, Tensor) or not node.shape or not any(isinstance(s, str) for s in node.shape):
            return value
        if value.dim() == 0 or len(value) != before or any(isinstance(s, str) for s in node.shape[1:]):
            raise SubjectError(
                "MT341",
                f"'{node.operation}' does not keep examples along dimension 0: its values {list(node.shape)} cannot "
                "be followed along a line",
                where=node.place(),
                fix="reshape so that the batch stays first",
            )
        return self.between(value)


def line_crossings(graph: Graph, start: Tensor, end: Tensor) -> Crossings:
    """All boundaries between ``start`` [m, ...] and ``end`` [m, ...], example by example.

    Raises:
        SubjectError: MT340 for operations that are not piecewise linear, MT341 for values that mix examples, MT344
            when a line crosses more boundaries than memory holds.
    """
    graph, asked = doubled(graph), switches(graph)
    if not graph.dynamic:
        raise SubjectError(
            "MT341", "the program fixes the number of examples, so that points cannot be added",
            where="; ".join(graph.notes), fix="capture it with an open batch (x.shape[0] instead of a number)",
        )  # fmt: skip
    lines = torch.arange(len(start), device=start.device)
    found_line, found_at = [lines[:0]], [torch.zeros(0, dtype=torch.float64, device=start.device)]
    # A line may come to have thousands of points: few are walked together, and the first tells how many.
    step, done = 1, 0
    with torch.no_grad():
        while done < len(start):
            part = slice(done, done + step)
            points = _walk(graph, asked, start[part].double(), end[part].double())
            inner = (points.at > 0) & (points.at < 1)
            found_line.append(points.line[inner] + done)
            found_at.append(points.at[inner])
            done += step
            step = max(1, min(len(start), TOGETHER * step // points.peak))
    return Crossings(torch.cat(found_line), torch.cat(found_at), len(start))


def _walk(graph: Graph, asked: Sequence[Node], start: Tensor, end: Tensor) -> _Points:
    m = len(start)
    line = torch.arange(m, device=start.device).repeat_interleave(2)
    at = torch.tensor([0.0, 1.0], dtype=torch.float64, device=start.device).repeat(m)
    points = _Points(line, at)
    rows = torch.stack([start, end], 1).flatten(0, 1)

    def look(value: Any, *, node: Node) -> Any:
        left, weight = _changes(node, points)
        if not len(left):
            return value
        points.values.pop(node)
        points.afford(node, len(left))
        points.insert(left, weight)
        args, kwargs = operands_of(node, points.values)
        return node.target(*args, **kwargs)

    if asked:
        forward(
            graph, {only_input(graph): rows},
            replace=widened(graph) | {node: partial(look, node=node) for node in asked},
            targets=[asked[-1]], values=points.values,
        )  # fmt: skip
    return points


def _changes(node: Node, points: _Points) -> tuple[Tensor, Tensor]:
    """Intervals between points in which a unit changes its piece, and where in them: [c] and [c] in 0..1."""
    args, kwargs = operands_of(node, points.values)
    inside = (points.line[1:] == points.line[:-1]).nonzero()[:, 0]
    if node.target in KINKED:
        x = args[0].reshape(len(args[0]), -1)
        lefts, weights = [], []
        for edge in kinks(node, args, kwargs).breaks:
            value = x - edge
            low, high = value[inside], value[inside + 1]
            row, unit = (((low < 0) & (high > 0)) | ((low > 0) & (high < 0))).nonzero(as_tuple=True)
            a, b = low[row, unit], high[row, unit]
            lefts.append(inside[row])
            weights.append(a / (a - b))
        left, weight = torch.cat(lefts), torch.cat(weights)
    else:
        left, weight = _envelope(candidates(node, args, kwargs), inside)
    # What happens at a point that is there already is no new crossing.
    span = points.at[left + 1] - points.at[left]
    fresh = (span * weight > SAME) & (span * (1 - weight) > SAME)
    return left[fresh], weight[fresh]


def _envelope(value: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Where the largest of [points, units, c] candidates, each linear between neighbours, is overtaken."""
    low, high = value[inside], value[inside + 1]  # [intervals, units, c]
    open_ = (low.argmax(-1) != high.argmax(-1)).nonzero(as_tuple=True)
    row, low, high = open_[0], low[open_], high[open_]  # [k], [k, c], [k, c]
    dead = low.isinf()
    slope = torch.where(dead, 0.0, high - low)
    low = torch.where(dead, -torch.inf, low)
    here = torch.zeros(len(row), dtype=low.dtype, device=low.device)
    best = _largest(low, slope, high)
    lefts, weights = [], []
    while len(row):
        behind = low.gather(1, best[:, None]) - low  # of the lines at 0
        pace = slope - slope.gather(1, best[:, None])
        meet = torch.where(pace > 0, behind / pace.clamp(min=1e-300), torch.inf)
        meet = torch.where(dead, torch.inf, torch.maximum(meet, here[:, None]))
        when = meet.amin(1)
        # Of those that overtake at once, the steepest leads afterwards.
        rival = torch.where(meet <= when[:, None], slope, -torch.inf).argmax(1)
        going = when < 1
        lefts.append(inside[row[going]])
        weights.append(when[going])
        row, low, slope, dead, best, here = (t[going] for t in (row, low, slope, dead, rival, when))
    if not lefts:
        return inside[:0], value.new_zeros(0)
    return torch.cat(lefts), torch.cat(weights)


def _largest(low: Tensor, slope: Tensor, high: Tensor) -> Tensor:
    """[k] candidate that leads from the left end on: the largest there, of equal ones the steepest."""
    top = low.amax(1, keepdim=True)
    return torch.where(low == top, slope, -torch.inf).argmax(1)


@dataclass(frozen=True, eq=False)
class CurveCrossings:
    """``at`` [c]: parameters where the pattern changes, in order; ``width`` to which each is known."""

    at: Tensor
    width: float


def curve_crossings(
    graph: Graph,
    curve: Callable[[Tensor], Tensor],
    low: float = 0.0,
    high: float = 1.0,
    *,
    samples: int = 257,
    width: float = 1e-9,
) -> CurveCrossings:
    """Where x = ``curve(t [m]) -> [m, ...]`` crosses boundaries for t in [low, high].

    ``samples`` patterns are taken first; every interval at whose ends they differ is halved until it is narrower than
    ``width``. Several crossings within ``width`` are one.
    """
    graph, place = doubled(graph), only_input(graph)

    def codes(t: Tensor) -> Tensor:
        return code(patterns_at(graph, {place: curve(t).double()}), len(t))

    t = torch.linspace(low, high, samples, dtype=torch.float64)
    with torch.no_grad():
        own = codes(t)
        left, right, first, last = t[:-1], t[1:], own[:-1], own[1:]
        while True:
            differ = (first != last).any(1)
            left, right, first, last = left[differ], right[differ], first[differ], last[differ]
            if not len(left) or float((right - left).max()) <= width:
                break
            middle = (left + right) / 2
            between = codes(middle)
            left, right = torch.stack([left, middle], 1).flatten(), torch.stack([middle, right], 1).flatten()
            first, last = (
                torch.stack([first, between], 1).flatten(0, 1),
                torch.stack([between, last], 1).flatten(0, 1),
            )
    at = (left + right) / 2
    apart = torch.ones(len(at), dtype=torch.bool)
    apart[1:] = at[1:] - at[:-1] > 2 * width  # one crossing at the end of an interval may show on both sides
    return CurveCrossings(at[apart], width)


def code(found: Mapping[Node, Tensor], n: int) -> Tensor:
    """[n, units] pieces of all switches side by side."""
    if not found:
        return torch.zeros(n, 0, dtype=torch.uint8)
    kind = torch.uint8 if all(p.dtype == torch.uint8 for p in found.values()) else torch.int32
    return torch.cat([p.to(kind).flatten(1) for p in found.values()], 1)


__all__ = ["Crossings", "CurveCrossings", "code", "curve_crossings", "line_crossings"]
