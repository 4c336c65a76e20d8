"""Interval bounds (IBP): every number becomes a range that certainly holds it.

``interval_bounds(graph, Interval.around(x, eps))`` bounds the outputs for all inputs in the box. Linear
maps use centre and radius (|W| r), normalisations the exact range of each entry given the others,
activations the curve's own turning points; the cost is two to three forwards.

Rounding. Ranges are widened outwards, so that they hold for the floating-point program as well as for exact
arithmetic. ``rounding="proved"`` uses the worst case of a sum of n products, 2 (n + 4) u times the sum of
magnitudes (u the unit roundoff), whatever the order of summation; ``"typical"`` (the default) replaces n by
sqrt(n), about four standard deviations of independent rounding errors; ``"none"`` adds nothing (for
training). Functions of one number are widened by 1 to 8 ulp, which is more than torch's own kernels err.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from microtome.errors import SubjectError
from microtome.interpret import interval_norms  # noqa: F401 - registers its rules
from microtome.interpret.curves import CURVES, Curve
from microtome.interpret.graph import Graph, Node
from microtome.interpret.interpreter import At, Run, forward, rule, sources
from microtome.interpret.interval_domain import (
    Interval,
    Intervals,
    Rounding,
    interval_of,
    linear_map,
    scaled,
)
from microtome.interpret.operations import AVERAGES, SELECTIONS, STRUCTURAL, aten, overloads

__all__ = ["Interval", "Intervals", "Rounding", "interval_bounds", "interval_of", "interval_run", "start_at"]

# --- structure, averages, selections


def _zip(lower: Any, upper: Any) -> Any:
    if isinstance(lower, tuple | list):
        return type(lower)(_zip(a, b) for a, b in zip(lower, upper, strict=True))
    return Interval(lower, upper)


@rule(Intervals, *STRUCTURAL, *SELECTIONS, *overloads("constant_pad_nd", "scatter.src", "index_put"))
def end_by_end(at: At, *args: Any, **kwargs: Any) -> Any:
    """The operation on lower and on upper ends; exact."""
    return _zip(at.per_part(lambda x: x.lower, args, kwargs), at.per_part(lambda x: x.upper, args, kwargs))


@rule(Intervals, aten.where.self)
def where(at: At, condition: Any, a: Any, b: Any) -> Interval:
    """Choose by a concrete condition."""
    if isinstance(condition, Interval):
        raise SubjectError(
            "MT312",
            "the domain 'interval' cannot follow a choice that depends on the input",
            where=at.node.place(),
            fix="write it with maximum, minimum or clamp",
        )
    first, second = interval_of(a), interval_of(b)
    return Interval(
        torch.where(condition, first.lower, second.lower), torch.where(condition, first.upper, second.upper)
    )


@rule(Intervals, *AVERAGES)
def average(at: At, *args: Any, **kwargs: Any) -> Interval:
    """Weights that are not negative: end by end, widened by the rounding of the sum."""
    lower = at.per_part(lambda x: x.lower, args, kwargs)
    upper = at.per_part(lambda x: x.upper, args, kwargs)
    if at.domain.rounding == "none":
        return Interval(lower, upper)
    size = at.per_part(lambda x: x.magnitude, args, kwargs)
    terms = max(_numel(args) / max(lower.numel(), 1), 1.0)
    if at.node.target in _UNEVEN:  # a sum may gather any number of entries
        terms = _numel(args)
    step = at.domain.gamma(terms, lower.dtype)
    return Interval(lower - step * size.abs(), upper + step * size.abs())


_UNEVEN = frozenset(overloads("scatter_add", "index_add", "cumsum", "col2im"))


def _numel(args: Sequence[Any]) -> int:
    return max(a.lower.numel() if isinstance(a, Interval) else 0 for a in args)


@rule(Intervals, aten.scatter_reduce.two)
def scatter_reduce(
    at: At, x: Any, dim: int, index: Tensor, src: Any, reduce: str, **options: Any
) -> Interval:
    """Maximum, minimum, sum or mean over a concrete index."""
    if reduce in ("amax", "amin"):
        return end_by_end(at, x, dim, index, src, reduce, **options)
    if reduce in ("sum", "mean"):
        return average(at, x, dim, index, src, reduce, **options)
    raise SubjectError(
        "MT312",
        f"the domain 'interval' has no rule for scatter_reduce with reduce={reduce!r}",
        where=at.node.place(),
        fix="use sum, mean, amax or amin",
    )


# --- functions of one number


def curve_of(at: At, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Curve:
    """The curve of this operation with its options."""
    return CURVES[at.node.target](*args, **kwargs)


@rule(Intervals, *[op for op in CURVES if op not in SELECTIONS])
def curve(at: At, x: Interval, *args: Any, **kwargs: Any) -> Interval:
    """Range of a function of one number."""
    shape = curve_of(at, args, kwargs)
    lower, upper = x.lower, x.upper
    if shape.domain[0] == 0:
        lower, upper = lower.clamp(min=0), upper.clamp(min=0)
    low, high = shape.range(lower, upper)
    if shape.pole:
        open_ended = (x.lower <= 0) & (x.upper >= 0)
        low, high = low.masked_fill(open_ended, -math.inf), high.masked_fill(open_ended, math.inf)
    if shape.at_input:
        return at.domain.outward(
            low, high, shape.ulps, torch.maximum(low.abs(), high.abs()).maximum(x.magnitude)
        )
    return at.domain.outward(low, high, shape.ulps)


@rule(Intervals, aten.prelu.default)
def prelu(at: At, x: Interval, weight: Tensor) -> Interval:
    """relu(x) - w relu(-x): turns at 0 at most."""
    first, last = at.run(x.lower, weight), at.run(x.upper, weight)
    low, high = torch.minimum(first, last), torch.maximum(first, last)
    across = (x.lower < 0) & (x.upper > 0)
    return at.domain.outward(
        torch.where(across, low.clamp(max=0), low), torch.where(across, high.clamp(min=0), high), 1
    )


# --- arithmetic


@rule(Intervals, *overloads("add.Tensor", "add.Scalar"))
def add(at: At, a: Any, b: Any, *, alpha: float = 1) -> Interval:
    """A + alpha b."""
    first, second = interval_of(a), scaled(at.domain, interval_of(b), alpha)
    return at.domain.outward(first.lower + second.lower, first.upper + second.upper)


@rule(Intervals, *overloads("sub.Tensor", "sub.Scalar"))
def sub(at: At, a: Any, b: Any, *, alpha: float = 1) -> Interval:
    """A - alpha b."""
    first, second = interval_of(a), scaled(at.domain, interval_of(b), alpha)
    return at.domain.outward(first.lower - second.upper, first.upper - second.lower)


@rule(Intervals, *overloads("rsub.Scalar", "rsub.Tensor"))
def rsub(at: At, a: Any, b: Any, alpha: float = 1) -> Interval:
    """B - alpha a."""
    return sub(at, b, a, alpha=alpha)


@rule(Intervals, aten.neg.default)
def neg(at: At, x: Interval) -> Interval:
    """Ends change places."""
    return Interval(-x.upper, -x.lower)


@rule(Intervals, *overloads("mul.Tensor", "mul.Scalar"))
def mul(at: At, a: Any, b: Any) -> Interval:
    """Product; of a value with itself the square."""
    if not isinstance(b, Interval):
        return scaled(at.domain, a, b)
    if not isinstance(a, Interval):
        return scaled(at.domain, b, a)
    if at.node.args[0] is at.node.args[1]:
        low, high = CURVES[aten.square.default]().range(a.lower, a.upper)
        return at.domain.outward(low, high)
    corners = [a.lower * b.lower, a.lower * b.upper, a.upper * b.lower, a.upper * b.upper]
    low = torch.minimum(torch.minimum(corners[0], corners[1]), torch.minimum(corners[2], corners[3]))
    high = torch.maximum(torch.maximum(corners[0], corners[1]), torch.maximum(corners[2], corners[3]))
    return at.domain.outward(low, high)


@rule(Intervals, *overloads("div.Tensor", "div.Scalar"))
def div(at: At, a: Any, b: Any) -> Interval:
    """Quotient; unbounded where the divisor may be 0."""
    if not isinstance(b, Interval):
        first, second = a.lower / b, a.upper / b
        return at.domain.outward(torch.minimum(first, second), torch.maximum(first, second))
    a = interval_of(a)
    corners = [a.lower / b.lower, a.lower / b.upper, a.upper / b.lower, a.upper / b.upper]
    low = torch.minimum(torch.minimum(corners[0], corners[1]), torch.minimum(corners[2], corners[3]))
    high = torch.maximum(torch.maximum(corners[0], corners[1]), torch.maximum(corners[2], corners[3]))
    zero = (b.lower <= 0) & (b.upper >= 0)
    return at.domain.outward(low.masked_fill(zero, -math.inf), high.masked_fill(zero, math.inf))


# --- linear maps


@rule(Intervals, aten.linear.default)
def linear(at: At, x: Any, weight: Any, bias: Any = None) -> Interval:
    """X W^T + b."""
    if not isinstance(x, Interval) or isinstance(weight, Interval) or isinstance(bias, Interval):
        turned = Interval(weight.lower.mT, weight.upper.mT) if isinstance(weight, Interval) else weight.mT
        product = matmul(at, x, turned)
        return product if bias is None else add(at, product, bias)
    absolute = weight.abs()
    return linear_map(
        at.domain,
        x,
        weight.shape[-1],
        lambda c: F.linear(c, weight, bias),
        lambda r: F.linear(r, absolute),
        None if bias is None else bias.abs(),
    )


@rule(Intervals, *overloads("matmul", "mm", "bmm"))
def matmul(at: At, a: Any, b: Any) -> Interval:
    """Matrix product; of two intervals by centre and radius, at most 1.5 times the exact width."""
    terms = a.shape[-1]
    if not isinstance(b, Interval):
        return linear_map(at.domain, a, terms, lambda c: c @ b, lambda r: r @ b.abs())
    if not isinstance(a, Interval):
        return linear_map(at.domain, b, terms, lambda c: a @ c, lambda r: a.abs() @ r)
    gamma = at.domain.gamma(terms, a.dtype)
    middle = a.center @ b.center
    size, reach = a.center.abs(), b.radius
    wide = reach * (1 + gamma) + gamma * b.center.abs() if gamma else reach
    spread = size @ wide + a.radius @ (b.center.abs() + reach) * (1 + gamma)
    return at.domain.outward(middle - spread, middle + spread, 2)


@rule(Intervals, *overloads("addmm", "baddbmm"))
def addmm(at: At, bias: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Interval:
    """Beta bias + alpha a b."""
    product = interval_of(matmul(at, a, b) if isinstance(a, Interval) or isinstance(b, Interval) else a @ b)
    return add(at, scaled(at.domain, interval_of(bias), beta), product, alpha=alpha)


@rule(Intervals, aten.convolution.default)
def convolution(at: At, x: Interval, weight: Tensor, bias: Tensor | None, *options: Any) -> Interval:
    """Convolution of any dimension, groups, stride, padding, dilation; transposed ones too."""
    if isinstance(weight, Interval):
        raise SubjectError(
            "MT312",
            "the domain 'interval' has no rule for kernels that depend on the input",
            where=at.node.place(),
            fix="start after this layer",
        )
    transposed, groups = options[3], options[5]
    absolute = weight.abs()
    terms = weight[0].numel() if not transposed else weight.shape[0] // groups * weight[0, 0].numel()
    size = None if bias is None else bias.abs().reshape(-1, *[1] * (x.lower.dim() - 2))
    return linear_map(
        at.domain,
        x,
        terms,
        lambda c: at.run(c, weight, bias, *options),
        lambda r: at.run(r, absolute, None, *options),
        size,
    )


# --- the plain function


def start_at(graph: Graph, box: Interval | Mapping[Node, Interval]) -> dict[Node, Interval]:
    """A box for the one place where meanings begin, or a box by node."""
    if isinstance(box, Mapping):
        return dict(box)
    places = sources(graph)
    if len(places) != 1:
        raise SubjectError(
            "MT313",
            f"the graph begins at {len(places)} places: {[n.name for n in places]}",
            fix="give one interval for each: {graph.node(name): Interval(...)}",
        )
    return {places[0]: box}


def interval_run(
    graph: Graph,
    box: Interval | Mapping[Node, Interval],
    inputs: Mapping[Node, Any] | None = None,
    *,
    rounding: Rounding = "typical",
    parameters: Mapping[str, Any] | None = None,
    **options: Any,
) -> Run:
    """Propagate a box; ``inputs`` are the inputs that stay concrete, ``options`` those of ``forward``."""
    boxes = start_at(graph, box)
    given = {node: boxes.get(node) for node in graph.inputs} | dict(inputs or {})
    given |= {node: value for node, value in boxes.items() if node.kind == "input"}
    inner = {node: (lambda _, value=value: value) for node, value in boxes.items() if node.kind != "input"}
    return forward(
        graph, given, Intervals(rounding=rounding), replace=inner, parameters=parameters, **options
    )


def interval_bounds(
    graph: Graph,
    box: Interval | Mapping[Node, Interval],
    inputs: Mapping[Node, Any] | None = None,
    *,
    rounding: Rounding = "typical",
    gradient: bool = False,
    parameters: Mapping[str, Any] | None = None,
) -> Interval:
    """Bounds on the first output for every input in the box; ``gradient=True`` is for training."""
    with torch.set_grad_enabled(gradient):
        found = interval_run(
            graph, box, inputs, rounding=rounding, parameters=parameters, targets=[graph.output]
        ).output
    result = interval_of(found)
    if bool(torch.isnan(result.lower).any() or torch.isnan(result.upper).any()):
        raise SubjectError(
            "MT314",
            "interval bounds are not numbers: an operation met infinity minus infinity",
            fix="use a smaller radius",
        )
    return result
