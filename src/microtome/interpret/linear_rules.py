"""Rules of the linear-bounds domain: how a row of coefficients goes from a result to its operands.

``A`` [s, *shape of the result] are coefficients of lower bounds. A rule returns the coefficients of its
operands and puts constants into the walk (``at.state.add``). Rules that replace an operation by lines or
planes read the operands' ranges (``keep="operands"``); linear ones read shapes only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from microtome.interpret import linear_norms  # noqa: F401 - registers its rules
from microtome.interpret.curves import CURVES
from microtome.interpret.interpreter import At, rule
from microtome.interpret.interval import Interval
from microtome.interpret.interval_norms import batch_norm_map
from microtome.interpret.linear_walk import (
    EXACT,
    Early,
    LinearBounds,
    fitted_lines,
    fold_to,
    lines_of,
    through_lines,
)
from microtome.interpret.operations import AVERAGES, STRUCTURAL, aten, overloads

# --- linear operations


@rule(
    LinearBounds,
    *overloads(
        "view",
        "_unsafe_view",
        "reshape",
        "unsqueeze",
        "squeeze",
        "squeeze.dim",
        "squeeze.dims",
        "clone",
        "alias",
        "detach",
        "contiguous",
        "lift_fresh_copy",
        "dropout",
    ),
    keep="shapes",
)
def reshape(at: At, a: Tensor, x: Tensor, *_: Any, **__: Any) -> Tensor:
    """Entries stay, their order stays."""
    return a.reshape(_shape_of(at, a, x))


def _shape_of(at: At, a: Tensor, x: Tensor) -> tuple[int, ...]:
    """Shape of rows of the operand; rows that examples share have 1 in the place of the batch."""
    if at.state.sharing and at.state.axes is not None:
        return (len(a), a.shape[1], *x.shape[1:])
    return (len(a), *x.shape)


@rule(LinearBounds, aten.permute.default, keep="shapes")
def permute(at: At, a: Tensor, x: Tensor, dims: Sequence[int]) -> Tensor:
    """The inverse permutation."""
    inverse = sorted(range(len(dims)), key=lambda i: dims[i] % len(dims))
    return a.permute(0, *(i + 1 for i in inverse))


@rule(LinearBounds, aten.transpose.int, keep="shapes")
def transpose(at: At, a: Tensor, x: Tensor, first: int, second: int) -> Tensor:
    """Its own inverse."""
    rank = x.dim()
    return a.transpose(first % rank + 1, second % rank + 1)


@rule(LinearBounds, aten.mean.dim, keep="shapes")
def mean(at: At, a: Tensor, x: Tensor, dims: Sequence[int] | None, keepdim: bool = False, **_: Any) -> Tensor:
    """Each entry gets its share."""
    rank = x.dim()
    axes = sorted(dim % rank for dim in (dims or range(rank)))
    if not keepdim:
        for axis in axes:
            a = a.unsqueeze(axis + 1)
    return (a / math.prod(x.shape[axis] for axis in axes)).expand(_shape_of(at, a, x))


@rule(LinearBounds, aten.avg_pool2d.default, keep="shapes")
def avg_pool2d(
    at: At,
    a: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    ceil: bool = False,
    count_padding: bool = True,
    divisor: int | None = None,
) -> Tensor:
    """The transposed pool, all rows at once."""
    rows, like = _images(a, x)
    share = aten.avg_pool2d_backward.default(
        rows, like, kernel, stride, padding, ceil, count_padding, divisor
    )
    return share.reshape(*a.shape[:-3], *x.shape[-3:])


@rule(LinearBounds, *overloads("adaptive_avg_pool2d", "_adaptive_avg_pool2d"), keep="shapes")
def adaptive_avg_pool2d(at: At, a: Tensor, x: Tensor, size: Sequence[int]) -> Tensor:
    """The transposed pool, all rows at once."""
    share = aten._adaptive_avg_pool2d_backward.default(*_images(a, x))
    return share.reshape(*a.shape[:-3], *x.shape[-3:])


def _images(a: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as a batch of images, and a tensor without memory that has the shape of their operand's."""
    rows = a.flatten(0, -4).contiguous()
    return rows, torch.empty((), dtype=a.dtype, device=a.device).expand(len(rows), *x.shape[-3:])


_DONE = frozenset(
    overloads(
        "view",
        "_unsafe_view",
        "reshape",
        "unsqueeze",
        "squeeze",
        "squeeze.dim",
        "squeeze.dims",
        "clone",
        "alias",
        "detach",
        "contiguous",
        "lift_fresh_copy",
        "dropout",
        "permute",
        "transpose.int",
        "mean.dim",
        "avg_pool2d",
        "adaptive_avg_pool2d",
        "_adaptive_avg_pool2d",
    )
)


@rule(
    LinearBounds,
    *[op for op in (*STRUCTURAL, *AVERAGES) if op not in _DONE],
    *overloads("constant_pad_nd", "where.self", "scatter.src", "index_put"),
    keep="shapes",
)
def affine(at: At, a: Any, *args: Any, **kwargs: Any) -> list[Any]:
    """Any operation that is linear in its tracked operands: transpose, and the value at 0 as constant."""
    fixed = any(t.is_floating_point() and not t.is_meta for t in _tensors(args))
    if fixed or at.node.target == aten.constant_pad_nd.default:
        zeros = at.run(*_filled(args), **kwargs)
        at.state.add(at.node, a * zeros)
    return at.transpose(a, *args, batched=1, **kwargs)


def _tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, tuple | list):
        return [tensor for item in tree for tensor in _tensors(item)]
    return [tree] if isinstance(tree, Tensor) else []


def _filled(tree: Any) -> Any:
    if isinstance(tree, tuple | list):
        return type(tree)(_filled(item) for item in tree)
    return torch.zeros(tree.shape, dtype=tree.dtype) if isinstance(tree, Tensor) and tree.is_meta else tree


@rule(LinearBounds, *overloads("add.Tensor", "add.Scalar", "sub.Tensor", "sub.Scalar"), keep="shapes")
def add(at: At, a: Tensor, x: Any, y: Any, *, alpha: float = 1) -> list[Tensor | None]:
    """Both operands get the row; what is constant goes to the constants."""
    factor = -alpha if at.node.target in _SUBTRACTIONS else alpha
    return _sum(at, a, (x, 1.0), (y, factor))


_SUBTRACTIONS = frozenset(overloads("sub.Tensor", "sub.Scalar"))


@rule(LinearBounds, *overloads("rsub.Scalar", "rsub.Tensor"), keep="shapes")
def rsub(at: At, a: Tensor, x: Any, y: Any, alpha: float = 1) -> list[Tensor | None]:
    """Y - alpha x."""
    return _sum(at, a, (x, -alpha), (y, 1.0))


def _sum(at: At, a: Tensor, *terms: tuple[Any, float]) -> list[Tensor | None]:
    shares: list[Tensor | None] = []
    for value, factor in terms:
        tensor = isinstance(value, Tensor)
        if tensor and at.wants(len(shares)):
            shares.append(fold_to(a if factor == 1 else a * factor, value))
            continue
        constant = a * (value * factor)
        # a mask of minus infinity: rows that do not look there stay finite
        if tensor and not bool(torch.isfinite(value).all()):
            constant = torch.where(a == 0, torch.zeros_like(constant), constant)
        at.state.add(at.node, constant)
        if tensor:
            shares.append(None)
    return shares


@rule(LinearBounds, aten.neg.default, keep="shapes")
def neg(at: At, a: Tensor, x: Tensor) -> Tensor:
    """Minus."""
    return -a


@rule(LinearBounds, aten.linear.default)
def linear(at: At, a: Tensor, x: Any, weight: Any, bias: Any = None) -> Any:
    """X W^T + b."""
    if bias is not None:
        at.state.add(at.node, a * bias)
    if isinstance(weight, Interval):
        shares = _product(at, a, x, Interval(weight.lower.mT, weight.upper.mT))
        return [shares[0], None if shares[1] is None else shares[1].mT, None]
    return a @ weight


@rule(LinearBounds, aten.convolution.default, keep="shapes")
def convolution(at: At, a: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    """The transposed convolution, all rows at once."""
    if bias is not None:
        at.state.per_channel(at.node, a, bias)
    rows = a.flatten(0, 1)
    like = torch.empty((), dtype=a.dtype, device=a.device).expand(len(rows), *x.shape[1:])
    stride, padding, dilation, transposed, out_padding, groups = options
    share = aten.convolution_backward.default(
        rows,
        like,
        weight,
        None,
        stride,
        padding,
        dilation,
        transposed,
        out_padding,
        groups,
        [True, False, False],
    )[0]
    return share.reshape(*a.shape[:2], *x.shape[1:])


@rule(LinearBounds, aten.batch_norm.default, keep="shapes")
def batch_norm(
    at: At,
    a: Tensor,
    x: Tensor,
    weight: Any,
    bias: Any,
    mean: Tensor,
    var: Tensor,
    training: bool,
    momentum: float,
    eps: float,
    cudnn: bool = False,
) -> Tensor:
    """A factor and a constant per channel."""
    factor, constant = batch_norm_map(x, weight, bias, mean, var, eps)
    at.state.per_channel(at.node, a, constant.flatten())
    return a * factor


# --- functions of one number


@rule(LinearBounds, *CURVES)
def curve(at: At, a: Tensor | Early, x: Interval, *args: Any, **kwargs: Any) -> Tensor:
    """A line below where the coefficient is positive, above where it is negative."""
    shape = CURVES[at.node.target](*args, **kwargs)
    return through_lines(at, at.node, a, *lines_of(at, shape, x, 0 if isinstance(a, Early) else len(a)))


# --- products


@rule(LinearBounds, *overloads("mul.Tensor", "mul.Scalar"))
def mul(at: At, a: Tensor, x: Any, y: Any) -> Any:
    """Product with numbers, a square, or a plane below and one above a product of two ranges."""
    if not isinstance(y, Interval):
        return fold_to(a * y, x)
    if not isinstance(x, Interval):
        share = fold_to(a * x, y)
        return [None, share] if isinstance(x, Tensor) else share
    if at.node.args[0] is at.node.args[1]:
        share = through_lines(at, at.node, a, *fitted_lines(at, CURVES[aten.square.default](), x))
        return [share, None]
    return [fold_to(share, value) for share, value in zip(planes(at, a, x, y), (x, y), strict=True)]


def planes(at: At, a: Tensor, x: Interval, y: Interval) -> tuple[Tensor, Tensor]:
    """McCormick: xy >= y_l x + x_l y - x_l y_l and xy <= y_u x + x_l y - x_l y_u."""
    edge = torch.where(a > 0, y.lower, y.upper)
    at.state.add(at.node, -a * x.lower * edge)
    return a * edge, a * x.lower


@rule(LinearBounds, *overloads("div.Tensor", "div.Scalar"))
def div(at: At, a: Tensor, x: Any, y: Any) -> Any:
    """Quotient by numbers, or product with the reciprocal."""
    if not isinstance(y, Interval):
        return fold_to(a / y, x)
    shape = CURVES[aten.reciprocal.default]()
    inverse = EXACT.outward(*shape.range(y.lower, y.upper), 4)
    lines = fitted_lines(at, shape, y)
    if isinstance(x, Interval):
        to_x, to_inverse = planes(at, a, x, inverse)
        return [fold_to(to_x, x), fold_to(through_lines(at, at.node, to_inverse, *lines), y)]
    share = fold_to(through_lines(at, at.node, a * x, *lines), y)
    return [None, share] if isinstance(x, Tensor) else share


@rule(LinearBounds, *overloads("matmul", "mm", "bmm"))
def matmul(at: At, a: Tensor, x: Any, y: Any) -> list[Tensor | None]:
    """Matrix product with numbers, or McCormick planes for every product of entries."""
    return _product(at, a, x, y)


def _product(at: At, a: Tensor, x: Any, y: Any) -> list[Tensor | None]:
    if not isinstance(y, Interval):
        return [fold_to(a @ y.mT, x), None]
    if not isinstance(x, Interval):
        return [None, fold_to(x.mT @ a, y)]
    positive, negative = a.clamp(min=0), a.clamp(max=0)
    at.state.add(at.node, -positive * (x.lower @ y.lower) - negative * (x.lower @ y.upper))
    to_x = positive @ y.lower.mT + negative @ y.upper.mT
    return [fold_to(to_x, x), fold_to(x.lower.mT @ a, y)]


@rule(LinearBounds, *overloads("addmm", "baddbmm"))
def addmm(
    at: At, a: Tensor, bias: Any, x: Any, y: Any, *, beta: float = 1, alpha: float = 1
) -> list[Tensor | None]:
    """Beta bias + alpha x y."""
    shares = _product(at, a * alpha if alpha != 1 else a, x, y)
    if isinstance(bias, Interval):
        return [fold_to(a * beta, bias), *shares]
    at.state.add(at.node, a * (bias * beta))
    return [None, *shares]
