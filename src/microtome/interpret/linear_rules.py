"""Rules of the linear-bounds domain: how a row of coefficients goes from a result to its operands.

``A`` [s, *shape of the result] are coefficients of lower bounds. A rule returns the coefficients of its
operands and puts constants into the walk (``at.state.add``). Rules that replace an operation by lines or
planes read the operands' ranges (``keep="operands"``); linear ones read shapes only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from microtome.errors import SubjectError
from microtome.interpret.curves import CURVES, Curve
from microtome.interpret.graph import Node
from microtome.interpret.interpreter import At, Domain, rule
from microtome.interpret.interval import Interval, Intervals, batch_norm_map, centred, interval_of
from microtome.interpret.operations import AVERAGES, STRUCTURAL, aten, overloads

Lines = tuple[Tensor, Tensor, Tensor, Tensor]  # slope and offset below, slope and offset above

MONOTONE_KINKED = frozenset(overloads("relu", "leaky_relu"))
_EXACT = Intervals(rounding="typical")


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
    return a.reshape(len(a), *x.shape)


@rule(LinearBounds, aten.permute.default, keep="shapes")
def permute(at: At, a: Tensor, x: Tensor, dims: Sequence[int]) -> Tensor:
    """The inverse permutation."""
    inverse = sorted(range(len(dims)), key=lambda i: dims[i] % len(dims))
    return a.permute(0, *(i + 1 for i in inverse))


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
        at.state.add(at.node, a * bias.reshape(-1, *[1] * (a.dim() - 3)))
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
    return share.reshape(len(a), *x.shape)


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
    at.state.add(at.node, a * constant)
    return a * factor


# --- functions of one number


@rule(LinearBounds, *CURVES)
def curve(at: At, a: Tensor, x: Interval, *args: Any, **kwargs: Any) -> Tensor:
    """A line below where the coefficient is positive, above where it is negative."""
    shape = CURVES[at.node.target](*args, **kwargs)
    return through_lines(at, at.node, a, *lines_of(at, shape, x, len(a)))


def through_lines(
    at: At, node: Node, a: Tensor, below: Tensor, low: Tensor, above: Tensor, high: Tensor
) -> Tensor:
    """Replace f(x) by below x + low or above x + high."""
    positive = a > 0
    at.state.add(node, a * torch.where(positive, low, high))
    return a * torch.where(positive, below, above)


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
    inverse = _EXACT.outward(*shape.range(y.lower, y.upper), 4)
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


# --- softmax, normalisation, pooling


@rule(LinearBounds, *overloads("softmax.int", "_softmax"))
def softmax(at: At, a: Tensor, x: Interval, dim: int, *_: Any) -> Tensor:
    """p_i = exp(x_i - lse(x)): lines for exp on its range, planes for lse, which is convex.

    Below lse lies its tangent plane at the centre; above, log of the sum of the chords of exp, by a tangent
    of log.
    """
    present = torch.isfinite(x.upper)
    lower, upper = x.lower.masked_fill(~present, -math.inf), x.upper
    l_safe, u_safe = lower.masked_fill(~present, 0.0), upper.masked_fill(~present, 0.0)
    top = upper.amax(dim, keepdim=True)
    middle = (l_safe + u_safe) / 2
    eps = torch.finfo(x.dtype).eps
    # tangent plane at the middle: lse(x) >= lse(m) + p.(x - m)
    weights = torch.softmax(middle.masked_fill(~present, -math.inf), dim)
    under = torch.logsumexp(middle.masked_fill(~present, -math.inf), dim, True) - (weights * middle).sum(
        dim, True
    )
    # chords: exp(x_j - top) <= e_j + c_j x_j; log S <= log T + (S - T) / T, T the chords at the middle
    low, high = torch.exp(lower - top), torch.exp(upper - top)
    chord = torch.where(present, (high - low) / (u_safe - l_safe).clamp(min=1e-20), torch.zeros_like(low))
    chord = torch.where(u_safe - l_safe > 1e-6, chord, high)
    base = torch.where(
        present, torch.maximum(low - chord * l_safe, high - chord * u_safe), torch.zeros_like(low)
    )
    total = (base + chord * middle).sum(dim, True)
    gradient = chord / total
    over = torch.log(total) + top + (base.sum(dim, True) / total) - 1
    scale = 16 * eps * (1 + x.shape[dim] ** 0.5 + middle.abs().amax(dim, True) + top.abs())
    under, over = under - scale, over + scale
    # range of t_i = x_i - lse(x) and lines of exp there
    p = Intervals().entry(at.node.target)
    assert p is not None
    found: Interval = p.rule(At(at.node, _EXACT), x, dim, False)
    tiny = torch.finfo(x.dtype).tiny
    t_low, t_high = torch.log(found.lower.clamp(min=tiny)), torch.log(found.upper.clamp(min=tiny))
    shape = CURVES[aten.exp.default]()
    t = Interval(t_low.clamp(min=-80), torch.maximum(t_high, t_low).clamp(min=-79))
    below, k_low, above, k_high = fitted_lines(at, shape, t)
    # where t is cut off at -80, the line below must be 0
    cut = t_low < -80
    below, k_low = below.masked_fill(cut, 0.0), k_low.masked_fill(cut, 0.0)
    below, above = (s.clamp(min=0) * present for s in (below, above))
    k_low, k_high = k_low * present, k_high * present
    # a > 0: p_i >= below (x_i - lse_upper) + k_low;  a < 0: p_i <= above (x_i - lse_lower) + k_high
    on_low, on_high = a.clamp(min=0) * below, a.clamp(max=0) * above
    sum_low, sum_high = (
        on_low.sum(dim if dim < 0 else dim + 1, True),
        on_high.sum(dim if dim < 0 else dim + 1, True),
    )
    at.state.add(at.node, a.clamp(min=0) * k_low - on_low * over + a.clamp(max=0) * k_high - on_high * under)
    return on_low + on_high - sum_low * gradient - sum_high * weights


@rule(LinearBounds, aten.layer_norm.default)
def layer_norm(
    at: At,
    a: Tensor,
    x: Interval,
    shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn: bool = True,
) -> Tensor:
    """d_i s with d = x - mean(x) linear and s = 1 / sqrt(var + eps) anywhere in its range."""
    dims = list(range(-len(shape), 0))
    if bias is not None:
        at.state.add(at.node, a * bias)
    return _divided(at, a if weight is None else a * weight, x, dims, eps, True)


@rule(LinearBounds, aten.rms_norm.default)
def rms_norm(
    at: At, a: Tensor, x: Interval, shape: Sequence[int], weight: Any = None, eps: float | None = None
) -> Tensor:
    """x_i s with s = 1 / sqrt(mean(x^2) + eps) anywhere in its range."""
    small = torch.finfo(x.dtype).eps if eps is None else eps
    return _divided(at, a if weight is None else a * weight, x, list(range(-len(shape), 0)), small, False)


@rule(LinearBounds, aten.group_norm.default)
def group_norm(
    at: At,
    a: Tensor,
    x: Interval,
    groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn: bool = True,
) -> Tensor:
    """Layer-norm of each group of channels."""
    channels = [-1, *[1] * (len(x.shape) - 2)]
    if bias is not None:
        at.state.add(at.node, a * bias.reshape(channels))
    a = a if weight is None else a * weight.reshape(channels)
    split = (x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    grouped = Interval(x.lower.reshape(split), x.upper.reshape(split))
    dims = list(range(2 - len(split), 0))
    proxy = _Regrouped(at.state, x.shape)
    share = _divided(At(at.node, at.domain, proxy), a.reshape(len(a), *split), grouped, dims, eps, True)
    return share.reshape(len(a), *x.shape)


class _Regrouped:
    """A walk whose terms come in another shape than the node's value has."""

    def __init__(self, walk: Walk, shape: Sequence[int]) -> None:
        self.walk, self.shape = walk, tuple(shape)

    def add(self, node: Node, terms: Tensor) -> None:
        """Add terms in the shape of the value."""
        self.walk.add(node, terms.reshape(len(terms), *self.shape))


@rule(LinearBounds, aten.amax.default)
def amax(at: At, a: Tensor, x: Interval, dim: Any = (), keepdim: bool = False) -> Tensor:
    """Below: the entry whose lower end is greatest. Above: the same if it surely wins, else the top end."""
    rank = len(x.shape)
    dims = sorted({d % rank for d in ([dim] if isinstance(dim, int) else list(dim))} or set(range(rank)))
    rest = [d for d in range(rank) if d not in dims]
    order = [*rest, *dims]
    lower, upper = (end.permute(order).flatten(len(rest)) for end in (x.lower, x.upper))
    best, where = lower.max(-1)
    rivals = upper.scatter(-1, where[..., None], -math.inf).amax(-1)
    sure = rivals <= best
    a = a.reshape(len(a), *best.shape)
    follow = (a > 0) | sure
    at.state.add(at.node, _as_result(torch.where(follow, 0.0, upper.amax(-1)) * a, x, dims, keepdim))
    share = torch.zeros(len(a), *lower.shape, dtype=a.dtype, device=a.device)
    share = share.scatter(-1, where[..., None].expand(len(a), *where.shape, 1), (a * follow)[..., None])
    share = share.reshape(len(a), *(x.shape[d] for d in order))
    return share.permute(0, *(order.index(d) + 1 for d in range(rank)))


def _as_result(terms: Tensor, x: Interval, dims: list[int], keepdim: bool) -> Tensor:
    if not keepdim:
        return terms
    return terms.reshape(len(terms), *(1 if d in dims else size for d, size in enumerate(x.shape)))


def _divided(at: At, a: Tensor, x: Interval, dims: list[int], eps: float, subtract_mean: bool) -> Tensor:
    """Through d / sqrt(mean(d^2) + eps) over ``dims``, with d = x - mean(x) or x itself."""
    d = centred(_EXACT, x, dims) if subtract_mean else x
    least, most = CURVES[aten.square.default]().range(d.lower, d.upper)
    slack = _EXACT.gamma(math.prod(x.shape[i] for i in dims), x.dtype)
    small = torch.rsqrt(most.mean(dims, keepdim=True) + eps) * (1 - slack)
    large = torch.rsqrt(least.mean(dims, keepdim=True) + eps) * (1 + slack)
    # the products d s lie between min(small d, large d) and max(...): a chord each
    low = torch.minimum(small * d.lower, large * d.lower), torch.minimum(small * d.upper, large * d.upper)
    high = torch.maximum(small * d.lower, large * d.lower), torch.maximum(small * d.upper, large * d.upper)
    lines = []
    for ends, keep in ((low, torch.minimum), (high, torch.maximum)):
        slope = (ends[1] - ends[0]) / (d.upper - d.lower).clamp(min=torch.finfo(x.dtype).tiny)
        slope = torch.minimum(torch.maximum(slope, small.expand_as(slope)), large.expand_as(slope))
        offset = keep(ends[0] - slope * d.lower, ends[1] - slope * d.upper)
        # between the ends the function may turn at 0
        across = (d.lower < 0) & (d.upper > 0)
        lines += [slope, torch.where(across, keep(offset, torch.zeros_like(offset)), offset)]
    share = through_lines(at, at.node, a, *lines)
    return share - share.mean(dims, keepdim=True) if subtract_mean else share


@rule(
    LinearBounds,
    *overloads(
        "amin",
        "maximum",
        "minimum",
        "prelu",
        "instance_norm",
        "log_softmax.int",
        "_log_softmax",
        "var.correction",
        "scatter_reduce.two",
        "max_pool1d",
        "max_pool3d",
        "adaptive_max_pool2d",
    ),
    keep="nothing",
    output=True,
)
def constant_bounds(at: At, a: Tensor, *_: Any, **__: Any) -> list[Any]:
    """The result's own interval: sound, and nothing goes further back."""
    found = interval_of(at.output)
    at.state.add(at.node, torch.where(a > 0, found.lower, found.upper) * a)
    return [None] * len(at.node.operands)


@rule(LinearBounds, aten.max_pool2d.default)
def max_pool2d(
    at: At,
    a: Tensor,
    x: Interval,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil: bool = False,
) -> Tensor:
    """Below: the entry whose lower end is greatest. Above: the same if it surely wins, else the top end."""
    args = (kernel, stride or kernel, padding, dilation, ceil)
    best, where = aten.max_pool2d_with_indices.default(x.lower, *args)  # [b, c, h, w]
    ceiling = aten.max_pool2d.default(x.upper, *args)
    flat = where.flatten(2)
    # the runner-up: windows overlap, so that the winner is taken out of each window separately
    columns = torch.nn.functional.unfold
    pads = [(k, p) for k, p in zip(_pair(kernel), _pair(padding), strict=True)]
    count = pads[0][0] * pads[1][0]
    if ceil or any(p for _, p in pads) or any(d != 1 for d in _pair(dilation)):
        sure = torch.zeros_like(best, dtype=torch.bool)
    else:
        b, c = x.shape[:2]
        spread = columns(x.upper, tuple(_pair(kernel)), stride=tuple(_pair(stride or kernel)))
        spread = spread.reshape(b, c, count, *best.shape[2:])
        winner = x.upper.flatten(2).gather(2, flat).reshape_as(best)
        # entries as great as the winner's upper end: all others must stay below the winner's lower end
        above = (spread > best[:, :, None]).sum(2)
        sure = above <= (winner > best).to(above.dtype)
    positive = (a > 0) | sure
    at.state.add(at.node, torch.where(positive, torch.zeros_like(ceiling), ceiling) * a)
    share = torch.zeros(len(a), *x.shape[:2], x.shape[2] * x.shape[3], dtype=a.dtype, device=a.device)
    share = share.scatter_add(3, flat.expand(len(a), *flat.shape), (a * positive).flatten(3))
    return share.reshape(len(a), *x.shape)


def _pair(value: Any) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values
