"""Rules of the domain ``lipschitz``: by how much each operation can stretch a change."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from microtome.errors import SubjectError
from microtome.interpret.curves import CURVES, Curve
from microtome.interpret.interpreter import At, rule
from microtome.interpret.interval_domain import Interval
from microtome.interpret.lipschitz_domain import Conv, Dense, Lipschitz, Reach, Step
from microtome.interpret.operations import AVERAGES, STRUCTURAL, aten, overloads

_FAR = 1e4
"""As good as infinity for the slopes of activations."""
_STEEP = frozenset(overloads("exp", "log", "sqrt", "rsqrt", "reciprocal", "square", "pow.Tensor_Scalar"))
_TRANSPARENT = frozenset(overloads("clone", "alias", "detach", "contiguous", "dropout", "lift_fresh_copy"))


def unbounded(at: At, why: str) -> SubjectError:
    """The error for an operation without a finite constant."""
    return SubjectError(
        "MT360", f"'{at.node.operation}' {why}", where=at.node.place(),
        fix="ask for a bound on a box around an example",
    )  # fmt: skip


def made(at: At, bound: float, args: Any, kwargs: Mapping[str, Any] | None = None, **state: Any) -> Any:
    """The result's shape with a bound; the operation is run on zeros."""

    def plain(leaf: Any) -> Any:
        return (
            torch.zeros(leaf.shape, dtype=leaf.dtype, device=leaf.device) if isinstance(leaf, Reach) else leaf
        )

    leaves, tree = pytree.tree_flatten((args, dict(kwargs or {})), is_leaf=lambda x: isinstance(x, Reach))
    again, named = pytree.tree_unflatten([plain(leaf) for leaf in leaves], tree)
    result = at.node.target(*again, **named)
    kind = next(x.dtype for x in leaves if isinstance(x, Reach))
    if isinstance(result, Tensor):
        return Reach(result.shape, kind, result.device, bound, **state)
    return type(result)(Reach(t.shape, kind, t.device, bound) for t in result)


def _reaches(args: Any, kwargs: Mapping[str, Any] | None = None) -> list[Reach]:
    leaves = pytree.tree_leaves((args, dict(kwargs or {})), is_leaf=lambda x: isinstance(x, Reach))
    return [leaf for leaf in leaves if isinstance(leaf, Reach)]


def stepped(at: At, kind: str, factor: float, so_far: float) -> None:
    """A line of the table, where something is multiplied by other than 1."""
    if factor != 1.0:
        at.domain.steps.append(Step(node=at.node, kind=kind, factor=factor, estimate=None, so_far=so_far))


# --- linear maps


@rule(Lipschitz, aten.linear.default)
def linear(at: At, x: Any, weight: Any, bias: Any = None) -> Reach:
    """The matrix, joined with an open one and with known slopes."""
    if not isinstance(x, Reach) or isinstance(weight, Reach):
        raise unbounded(at, "has weights that depend on the input")
    shape = torch.Size([*x.shape[:-1], len(weight)])
    if isinstance(x.open, Dense):
        return Reach(
            shape, x.dtype, x.device, x.base, Dense(weight @ x.open.matrix, (*x.open.nodes, at.node))
        )
    base, matrix = x.bound(at.domain), weight
    if x.columns is not None and x.open is None and len(x.shape) == 2:
        base, matrix = x.base, weight * x.columns.reshape(1, -1)
    return Reach(shape, x.dtype, x.device, base, Dense(matrix, (at.node,)))


@rule(Lipschitz, aten.convolution.default)
def convolution(at: At, x: Reach, weight: Any, bias: Any, *options: Any) -> Reach:
    """The convolution, its input channels scaled by known slopes."""
    if isinstance(weight, Reach) or not isinstance(x, Reach):
        raise unbounded(at, "has weights that depend on the input")
    stride, padding, dilation, transposed, extra, groups = options
    base = x.bound(at.domain)
    if x.columns is not None and x.open is None and not transposed:
        channels = x.columns.reshape(x.shape[1], -1).amax(1)
        per = channels.reshape(groups, 1, -1).expand(-1, weight.shape[0] // groups, -1).flatten(0, 1)
        base, weight = x.base, weight * per.reshape(*per.shape, *[1] * (weight.dim() - 2))
    result: Reach = made(at, base, (x, weight, bias, *options))
    held = Conv(weight, tuple(stride), tuple(padding), tuple(dilation), transposed, tuple(extra), groups,
                tuple(x.shape[2:]), tuple(result.shape[2:]), (at.node,))  # fmt: skip
    return Reach(result.shape, result.dtype, result.device, base, held)


@rule(Lipschitz, aten.batch_norm.default)
def batch_norm(
    at: At, x: Reach, weight: Any, bias: Any, mean: Any, var: Any, training: bool, *rest: Any
) -> Any:
    """A scale a channel, put into an open convolution or matrix."""
    if training:
        raise unbounded(at, "normalises by the batch")
    scale = (var + rest[1]).rsqrt() * (1.0 if weight is None else weight)
    if x.open is not None and (isinstance(x.open, Conv) or len(x.shape) == 2):
        scaled = x.open.rows_scaled(scale)
        return Reach(x.shape, x.dtype, x.device, x.base, replace(scaled, nodes=(*scaled.nodes, at.node)))
    factor = float(scale.abs().max())
    bound = x.bound(at.domain) * factor
    stepped(at, "batch_norm", factor, bound)
    return Reach(x.shape, x.dtype, x.device, bound)


@rule(Lipschitz, *dict.fromkeys((*STRUCTURAL, *AVERAGES, aten.constant_pad_nd.default)))
def weighted(at: At, *args: Any, **kwargs: Any) -> Any:
    """Entries moved, chosen, repeated or averaged: a matrix without negative entries, known by its sums.

    Its norm 2 is at most the root of its largest row sum times its largest column sum: exact for all that is common.
    """
    reaches = _reaches(args, kwargs)
    if at.node.target in _TRANSPARENT:
        return reaches[0]
    bounds = [x.bound(at.domain) for x in reaches]
    flat, tree = pytree.tree_flatten((args, kwargs), is_leaf=lambda x: isinstance(x, Reach))
    if at.node.target == aten.constant_pad_nd.default:
        flat = [0.0 if isinstance(leaf, float) else leaf for leaf in flat]
    spots = [i for i, leaf in enumerate(flat) if isinstance(leaf, Reach)]
    # Constants beside the operands move nothing.
    still = [
        torch.zeros_like(leaf) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
        for leaf in flat
    ]

    def run(*values: Tensor) -> Any:
        leaves = list(still)
        for spot, value in zip(spots, values, strict=True):
            leaves[spot] = value
        again, named = pytree.tree_unflatten(leaves, tree)
        found = at.node.target(*again, **named)
        return tuple(found) if isinstance(found, tuple | list) else found

    ones = [torch.ones(flat[s].shape, dtype=flat[s].dtype, device=flat[s].device) for s in spots]
    out, pull = torch.func.vjp(run, *ones)[:2]
    back = pull(pytree.tree_map(torch.ones_like, out))
    down = max((float(t.max()) for t in back if t.numel()), default=0.0)
    across = max((float(t.max()) for t in pytree.tree_leaves(out) if t.numel()), default=0.0)
    factor = {"2": math.sqrt(across * down), "inf": across, "1": down}[at.domain.norm]
    bound = at.domain.joined(bounds) * factor
    stepped(at, at.node.operation.split(".")[1], factor, bound)
    kind = reaches[0].dtype
    if isinstance(out, tuple):
        return [Reach(t.shape, kind, t.device, bound) for t in out]
    return Reach(out.shape, kind, out.device, bound)


# --- functions of one number


def curve_slopes(curve: Curve, box: Interval | None) -> Tensor | float:
    """The largest |slope| of a function: everywhere, or entry by entry in a box."""
    if box is None:
        near = [b + side for b in curve.breaks for side in (-1e-9, 0.0, 1e-9)]
        points = torch.tensor([-_FAR, *near, _FAR], dtype=torch.float64)
        return float(curve.slope(points).abs().max())
    found = torch.maximum(curve.slope(box.lower).abs(), curve.slope(box.upper).abs())
    for edge in curve.breaks:
        inside = (box.lower <= edge) & (edge <= box.upper)
        for side in (-1e-9, 0.0, 1e-9):
            there = curve.slope(torch.full_like(box.lower, edge + side)).abs()
            found = torch.where(inside, torch.maximum(found, there), found)
    return found


@rule(Lipschitz, *CURVES)
def curve(at: At, x: Reach, *args: Any, **kwargs: Any) -> Reach:
    """The steepest slope: derivatives are monotone between a curve's breaks."""
    box = at.domain.ranges.get(at.node.operands[0])
    if box is None and at.node.target in _STEEP:
        raise unbounded(at, "is steeper than any number somewhere")
    slopes = curve_slopes(CURVES[at.node.target](*args, **kwargs), box)
    if not isinstance(slopes, Tensor):
        bound = x.bound(at.domain) * slopes
        stepped(at, at.node.operation.split(".")[1], slopes, bound)
        return Reach(x.shape, x.dtype, x.device, bound)
    if not bool(torch.isfinite(slopes).all()):
        raise unbounded(at, "is steeper than any number in this box")
    alive = (slopes > 0).reshape(-1).double()
    if isinstance(x.open, Dense) and len(x.shape) == 2:  # what is off everywhere moves nothing
        x = Reach(x.shape, x.dtype, x.device, x.base, x.open.rows_scaled(alive))
    return Reach(x.shape, x.dtype, x.device, x.bound(at.domain), None, slopes.reshape(-1))


@rule(Lipschitz, aten.prelu.default)
def prelu(at: At, x: Reach, weight: Tensor) -> Reach:
    """The steeper of its two slopes."""
    factor = max(1.0, float(weight.abs().max()))
    return Reach(x.shape, x.dtype, x.device, x.bound(at.domain) * factor)


@rule(Lipschitz, *overloads("softmax.int", "log_softmax.int"))
def softmax(at: At, x: Reach, dim: int, dtype: Any = None) -> Reach:
    """diag(p) - p p^T has norms of at most 1/2; that of the logarithm I - 1 p^T is worst where p is certain."""
    n = x.shape[dim]
    certain = {"2": math.sqrt(n), "inf": 2.0, "1": float(max(1, n - 1))}[at.domain.norm]
    factor = certain if "log" in at.node.operation else 0.5
    bound = x.bound(at.domain) * factor
    stepped(at, at.node.operation.split(".")[1], factor, bound)
    return Reach(x.shape, x.dtype, x.device, bound)


def _normalised(scale: Callable[[tuple[Any, ...]], tuple[Any, float]]) -> Callable[..., Reach]:
    def ruled(at: At, x: Reach, *args: Any, **kwargs: Any) -> Reach:
        if at.domain.norm != "2":
            raise unbounded(at, "has a bound in the norm 2 alone")
        weight, eps = scale(args)
        if eps <= 0:
            raise unbounded(at, "divides by a deviation that may be 0")
        factor = (1.0 if weight is None else float(weight.abs().max())) / math.sqrt(eps)
        at.domain.notes.append(
            f"'{at.node.layer or at.node.name}' divides by a deviation of which no more is known than eps: a factor of "
            f"{factor:.3g}"
        )
        bound = x.bound(at.domain) * factor
        stepped(at, at.node.operation.split(".")[1], factor, bound)
        return Reach(x.shape, x.dtype, x.device, bound)

    return ruled


# gamma / sigma (I - 1 1^T / n - x x^T / n): a projection times gamma / sigma, and sigma is at least the root of eps.
rule(Lipschitz, aten.layer_norm.default)(
    _normalised(lambda a: (a[1] if len(a) > 1 else None, a[3] if len(a) > 3 else 1e-5))
)
rule(Lipschitz, aten.group_norm.default)(
    _normalised(lambda a: (a[1] if len(a) > 1 else None, a[3] if len(a) > 3 else 1e-5))
)


# --- sums, products, maxima


@rule(Lipschitz, *overloads("add.Tensor", "add.Scalar", "sub.Tensor", "sub.Scalar", "rsub.Scalar"))
def add(at: At, a: Any, b: Any, *, alpha: float = 1) -> Any:
    """Bounds add up; a constant moves nothing."""
    if isinstance(a, Reach) and isinstance(b, Reach):
        return made(at, a.bound(at.domain) + abs(alpha) * b.bound(at.domain), (a, b))
    x, factor = (a, 1.0) if isinstance(a, Reach) else (b, abs(alpha))
    other = b if isinstance(a, Reach) else a
    if factor == 1.0 and (
        not isinstance(other, Tensor) or torch.broadcast_shapes(other.shape, x.shape) == x.shape
    ):
        return x
    return made(at, x.bound(at.domain) * factor * _repeats(at, x, other), (a, b))


def _repeats(at: At, x: Reach, other: Any) -> float:
    """An operand that broadcasting repeats moves several entries."""
    if not isinstance(other, Tensor):
        return 1.0
    count = math.prod(torch.broadcast_shapes(other.shape, x.shape)) / max(math.prod(x.shape), 1)
    return {"2": math.sqrt(count), "inf": 1.0, "1": count}[at.domain.norm]


@rule(Lipschitz, aten.neg.default)
def neg(at: At, x: Reach) -> Reach:
    """As far, the other way."""
    return Reach(x.shape, x.dtype, x.device, x.bound(at.domain))


def _size(value: Any) -> float:
    return float(value.abs().max()) if isinstance(value, Tensor) and value.numel() else abs(float(value))


@rule(Lipschitz, *overloads("mul.Tensor", "mul.Scalar", "div.Tensor", "div.Scalar"))
def mul(at: At, a: Any, b: Any, **options: Any) -> Any:
    """By a constant its largest entry; of two values, what their ranges allow."""
    division = "div" in at.node.operation
    if isinstance(a, Reach) and isinstance(b, Reach):
        first, second = (at.domain.ranges.get(operand) for operand in at.node.operands)
        if division or first is None or second is None or a.shape != b.shape:
            raise unbounded(at, "multiplies two values that depend on the input" if not division else
                            "divides by a value that depends on the input")  # fmt: skip
        size = [float(box.magnitude.max()) for box in (first, second)]
        return made(at, size[0] * b.bound(at.domain) + size[1] * a.bound(at.domain), (a, b))
    if division and isinstance(b, Reach):
        raise unbounded(at, "divides by a value that depends on the input")
    x, other = (a, b) if isinstance(a, Reach) else (b, a)
    factor = (_size(1 / other) if division else _size(other)) * _repeats(at, x, other)
    bound = x.bound(at.domain) * factor
    stepped(at, at.node.operation.split(".")[1], factor, bound)
    return made(at, bound, (a, b), options)


@rule(Lipschitz, *overloads("matmul", "mm", "bmm"))
def matmul(at: At, a: Any, b: Any) -> Any:
    """By a constant its norm; of two values |a| |db| + |da| |b| with the largest norms in the box."""
    if isinstance(a, Reach) and isinstance(b, Reach):
        sizes = [at.domain.ranges.get(operand) for operand in at.node.operands]
        if at.domain.norm != "2" or sizes[0] is None or sizes[1] is None or a.shape[:-2] != b.shape[:-2]:
            raise unbounded(
                at, "multiplies two values that depend on the input: attention has no finite constant"
            )
        # |a b| <= |a|_2 |b|_F for each matrix of the batch, and |a|_2 <= |a|_F.
        first, second = (float(box.magnitude.norm(dim=(-2, -1)).max()) for box in sizes if box is not None)
        return made(at, first * b.bound(at.domain) + second * a.bound(at.domain), (a, b))
    x, other = (a, b) if isinstance(a, Reach) else (b, a)
    if other.dim() != 2:
        raise unbounded(at, "multiplies by a stack of matrices")
    held = Dense(other.mT if x is a else other, (at.node,))
    factor = held.norm(at.domain.norm)
    bound = x.bound(at.domain) * factor
    stepped(at, "matmul", factor, bound)
    return made(at, bound, (a, b))


@rule(Lipschitz, *overloads("maximum", "minimum"))
def maximum(at: At, a: Any, b: Any) -> Any:
    """One of two values side by side."""
    return made(at, at.domain.joined([x.bound(at.domain) for x in _reaches((a, b))]), (a, b))


@rule(Lipschitz, aten.where.self)
def where(at: At, condition: Any, a: Any, b: Any) -> Any:
    """Chosen by a constant condition."""
    if isinstance(condition, Reach):
        raise unbounded(at, "jumps where a condition on the input changes")
    return made(at, at.domain.joined([x.bound(at.domain) for x in _reaches((a, b))]), (condition, a, b))


@rule(Lipschitz, aten.masked_fill.Scalar)
def masked_fill(at: At, x: Any, mask: Any, value: float) -> Any:
    """Fewer entries move."""
    if isinstance(mask, Reach):
        raise unbounded(at, "jumps where a condition on the input changes")
    return made(at, x.bound(at.domain), (x, mask, value))


@rule(Lipschitz, *overloads("amax", "amin"))
def largest(at: At, x: Reach, *args: Any, **kwargs: Any) -> Any:
    """A maximum moves no more than what moves most."""
    return made(at, x.bound(at.domain), (x, *args), kwargs)


@rule(Lipschitz, *overloads("max_pool1d", "max_pool2d", "max_pool3d"))
def max_pool(at: At, x: Reach, kernel: Any, stride: Any = (), *args: Any, **kwargs: Any) -> Any:
    """An entry moves as many results as windows hold it: ceil(kernel / stride) along each axis."""
    rank = int(at.node.operation.split("max_pool")[1][0])
    size = [kernel] * rank if isinstance(kernel, int) else list(kernel) * (rank if len(kernel) == 1 else 1)
    step = [stride] * rank if isinstance(stride, int) else list(stride) * (rank if len(stride) == 1 else 1)
    count = math.prod(math.ceil(k / s) for k, s in zip(size, step or size, strict=True))
    factor = {"2": math.sqrt(count), "inf": 1.0, "1": float(count)}[at.domain.norm]
    bound = x.bound(at.domain) * factor
    stepped(at, f"max_pool{rank}d", factor, bound)
    return made(at, bound, (x, kernel, stride, *args), kwargs)
