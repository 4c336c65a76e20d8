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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from microtome.errors import SubjectError
from microtome.interpret.curves import CURVES, Curve
from microtome.interpret.graph import Graph, Node
from microtome.interpret.interpreter import At, Domain, Run, forward, rule, sources
from microtome.interpret.operations import AVERAGES, SELECTIONS, STRUCTURAL, aten, overloads

Rounding = Literal["typical", "proved", "none"]


@dataclass(frozen=True, slots=True, eq=False)
class Interval:
    """Numbers between ``lower`` and ``upper``, entry by entry."""

    lower: Tensor
    upper: Tensor

    @staticmethod
    def around(
        x: Tensor, radius: float | Tensor, low: float | None = None, high: float | None = None
    ) -> Interval:
        """The box of half-width ``radius``, cut to [low, high] where given."""
        lower, upper = x - radius, x + radius
        return (
            Interval(lower.clamp(min=low), upper.clamp(max=high))
            if low is not None or high is not None
            else (Interval(lower, upper))
        )

    @property
    def shape(self) -> torch.Size:
        """Shape of either end."""
        return self.lower.shape

    @property
    def dtype(self) -> torch.dtype:
        """Type of either end."""
        return self.lower.dtype

    @property
    def device(self) -> torch.device:
        """Device of either end."""
        return self.lower.device

    @property
    def center(self) -> Tensor:
        """Midpoint."""
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> Tensor:
        """Half the width."""
        return (self.upper - self.lower) / 2

    @property
    def magnitude(self) -> Tensor:
        """Greatest absolute value."""
        return torch.maximum(self.lower.abs(), self.upper.abs())

    @property
    def width(self) -> Tensor:
        """Upper minus lower."""
        return self.upper - self.lower

    def contains(self, x: Tensor) -> Tensor:
        """Entry by entry, whether the number lies inside."""
        return (self.lower <= x) & (x <= self.upper)

    def __repr__(self) -> str:
        return f"Interval({list(self.shape)}, mean width {float(self.width.mean()):.3g})"


@dataclass(frozen=True)
class Intervals(Domain):
    """Interval bounds as a domain; ``rounding`` says how far ranges are widened outwards."""

    name: ClassVar[str] = "interval"
    value: ClassVar[type | None] = Interval
    rounding: Rounding = "typical"

    def gamma(self, terms: float, dtype: torch.dtype) -> float:
        """Relative widening for a sum of this many products."""
        if self.rounding == "none":
            return 0.0
        return torch.finfo(dtype).eps * (4 + (terms if self.rounding == "proved" else math.sqrt(terms)))

    def outward(self, lower: Tensor, upper: Tensor, ulps: float = 1, scale: Tensor | None = None) -> Interval:
        """Widen by ``ulps`` units of eps relative to the ends, or to ``scale``."""
        if self.rounding == "none" or not ulps:
            return Interval(lower, upper)
        step = ulps * torch.finfo(lower.dtype).eps
        if scale is not None:
            return Interval(lower - step * scale, upper + step * scale)
        # Written as products, because masks bring infinities.
        return Interval(
            torch.minimum(lower * (1 - step), lower * (1 + step)),
            torch.maximum(upper * (1 - step), upper * (1 + step)),
        )


def linear_map(
    domain: Intervals,
    x: Interval,
    terms: float,
    apply: Callable[[Tensor], Tensor],
    spread: Callable[[Tensor], Tensor],
    size: Tensor | None = None,
) -> Interval:
    """A linear map: ``apply`` to the centre (with its constant), ``spread`` (absolute weights) to the radius.

    ``size`` is the magnitude of the constant. The rounding error of the centre is part of the radius it is
    given.
    """
    center, radius = x.center, x.radius
    gamma = domain.gamma(terms, x.dtype)
    middle = apply(center)
    reach = spread(radius * (1 + gamma) + gamma * center.abs() if gamma else radius)
    if gamma and size is not None:
        reach = reach + gamma * size
    return domain.outward(middle - reach, middle + reach, 2)


def interval_of(value: Any) -> Interval:
    """A number as the range that holds it alone."""
    return value if isinstance(value, Interval) else Interval(value, value)


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


def scaled(domain: Intervals, x: Interval, factor: Any) -> Interval:
    """Multiply by a number or tensor of numbers."""
    if isinstance(factor, int | float) and factor == 1:
        return x
    first, second = x.lower * factor, x.upper * factor
    return domain.outward(torch.minimum(first, second), torch.maximum(first, second))


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


def per_channel(tensor: Tensor, like: Any) -> Tensor:
    """[c] -> [1, c, 1, ...]."""
    return tensor.reshape(1, -1, *[1] * (len(like.shape) - 2))


def batch_norm_map(
    like: Any, weight: Any, bias: Any, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Batch-norm in eval mode as factor and constant, shaped to multiply its operand."""
    factor = torch.rsqrt(var + eps) * (1 if weight is None else weight)
    constant = -mean * factor + (0 if bias is None else bias)
    return per_channel(factor, like), per_channel(constant, like)


@rule(Intervals, aten.batch_norm.default)
def batch_norm(
    at: At,
    x: Interval,
    weight: Any,
    bias: Any,
    mean: Tensor,
    var: Tensor,
    training: bool,
    momentum: float,
    eps: float,
    cudnn: bool = False,
) -> Interval:
    """Eval mode: a factor and a constant per channel."""
    if training:
        raise SubjectError(
            "MT312",
            "batch-norm in train mode mixes the rows of a batch",
            where=at.node.place(),
            fix="capture the model in eval mode",
        )
    factor, constant = batch_norm_map(x, weight, bias, mean, var, eps)
    size = (per_channel(mean, x) * factor).abs() + (0 if bias is None else per_channel(bias, x).abs())
    absolute = factor.abs()
    return linear_map(at.domain, x, 4, lambda c: c * factor + constant, lambda r: r * absolute, size)


# --- normalisations, softmax


def normalised(domain: Intervals, d: Interval, dims: list[int], eps: float, centred: bool) -> Interval:
    """Range of d_i / sqrt(mean(d^2) + eps).

    Given the others the quotient grows with d_i, so that the least and greatest sum of the others' squares
    decide. When the d sum to 0, the others' squares sum to at least d_i^2 / (n - 1).
    """
    n = math.prod(d.shape[i] for i in dims)
    least, most = CURVES[aten.square.default]().range(d.lower, d.upper)
    slack = domain.gamma(n, d.dtype)
    fewest = (least.sum(dims, keepdim=True) * (1 - slack) - least * (1 + slack)).clamp(min=0)
    largest = (most.sum(dims, keepdim=True) * (1 + slack) - most * (1 - slack)).clamp(min=0)

    def quotient(entry: Tensor, far: Tensor) -> Tensor:
        near = fewest
        if centred and n > 1:
            near = torch.maximum(near, entry * entry / (n - 1) * (1 - slack))
        others = torch.where(far, near, largest)
        return entry * torch.rsqrt((entry * entry + others) / n + eps)

    return domain.outward(quotient(d.lower, d.lower < 0), quotient(d.upper, d.upper > 0), 8)


def centred(domain: Intervals, x: Interval, dims: list[int]) -> Interval:
    """Range of x_i - mean(x): x_i counts with 1 - 1/n, the others with -1/n."""
    n = math.prod(x.shape[i] for i in dims)
    lower = x.lower * (1 - 1 / n) - (x.upper.sum(dims, keepdim=True) - x.upper) / n
    upper = x.upper * (1 - 1 / n) - (x.lower.sum(dims, keepdim=True) - x.lower) / n
    if domain.rounding == "none":
        return Interval(lower, upper)
    size = x.magnitude
    step = domain.gamma(n, x.dtype) * (size + size.mean(dims, keepdim=True))
    return Interval(lower - step, upper + step)


@rule(Intervals, aten.layer_norm.default)
def layer_norm(
    at: At,
    x: Interval,
    shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn: bool = True,
) -> Interval:
    """(x - mean) / sqrt(var + eps) over the last dimensions, then weight and bias."""
    dims = list(range(-len(shape), 0))
    return _affine(
        at.domain, normalised(at.domain, centred(at.domain, x, dims), dims, eps, True), weight, bias
    )


def _affine(domain: Intervals, z: Interval, weight: Any, bias: Any) -> Interval:
    z = z if weight is None else scaled(domain, z, weight)
    return z if bias is None else domain.outward(z.lower + bias, z.upper + bias)


@rule(Intervals, aten.rms_norm.default)
def rms_norm(
    at: At, x: Interval, shape: Sequence[int], weight: Any = None, eps: float | None = None
) -> Interval:
    """X / sqrt(mean(x^2) + eps), then weight."""
    dims = list(range(-len(shape), 0))
    return _affine(
        at.domain,
        normalised(at.domain, x, dims, torch.finfo(x.dtype).eps if eps is None else eps, False),
        weight,
        None,
    )


@rule(Intervals, aten.group_norm.default)
def group_norm(
    at: At,
    x: Interval,
    groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn: bool = True,
) -> Interval:
    """Normalise each group of channels of each example."""
    flat = Interval(*(end.reshape(x.shape[0], groups, -1) for end in (x.lower, x.upper)))
    z = normalised(at.domain, centred(at.domain, flat, [-1]), [-1], eps, True)
    z = Interval(z.lower.reshape(x.shape), z.upper.reshape(x.shape))
    return _affine(at.domain, z, *(None if t is None else per_channel(t, x) for t in (weight, bias)))


@rule(Intervals, aten.instance_norm.default)
def instance_norm(
    at: At,
    x: Interval,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    use_input: bool,
    momentum: float,
    eps: float,
    cudnn: bool = True,
) -> Interval:
    """Normalise each channel of each example, or by running statistics."""
    if use_input:
        return group_norm(at, x, x.shape[1], weight, bias, eps)
    return batch_norm(at, x, weight, bias, mean, var, False, momentum, eps)


@rule(Intervals, *overloads("var.correction"))
def variance(
    at: At, x: Interval, dim: Any = None, *, correction: float | None = None, keepdim: bool = False
) -> Interval:
    """Mean square of the centred entries."""
    dims = list(range(x.lower.dim())) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    n = math.prod(x.shape[i] for i in dims)
    d = centred(at.domain, x, dims)
    low, high = CURVES[aten.square.default]().range(d.lower, d.upper)
    by = n - (1 if correction is None else correction)
    return at.domain.outward(low.sum(dims, keepdim) / by, high.sum(dims, keepdim) / by, 4 + n)


def _others(terms: Tensor, dim: int) -> Tensor:
    """Sum of the other entries along ``dim``, without cancellation."""
    before = torch.cumsum(terms, dim) - terms if terms.shape[dim] <= 1 else None
    if before is not None:
        return before
    zero = torch.zeros_like(terms.narrow(dim, 0, 1))
    left = torch.cat([zero, torch.cumsum(terms, dim).narrow(dim, 0, terms.shape[dim] - 1)], dim)
    turned = torch.cumsum(terms.flip(dim), dim).narrow(dim, 0, terms.shape[dim] - 1)
    return left + torch.cat([zero, turned], dim).flip(dim)


@rule(Intervals, *overloads("softmax.int", "_softmax"))
def softmax(at: At, x: Interval, dim: int, *_: Any) -> Interval:
    """Least when the entry is least and the others are greatest; exact. Entries masked by -inf are 0."""
    top = x.upper.amax(dim, keepdim=True)
    low, high = torch.exp(x.lower - top), torch.exp(x.upper - top)
    tiny = torch.finfo(x.dtype).tiny
    lower = low / (low + _others(high, dim)).clamp(min=tiny)
    floor = high + _others(low, dim)
    upper = torch.where(floor > tiny, high / floor.clamp(min=tiny), (high > 0).to(x.dtype))
    slack = 8 + 2 * at.domain.gamma(x.shape[dim], x.dtype) / torch.finfo(x.dtype).eps
    out = at.domain.outward(lower, upper, slack)
    # exp of a large difference has the relative error of that difference
    if at.domain.rounding != "none":
        gap = torch.nan_to_num(x.magnitude, posinf=0.0).amax(dim, keepdim=True) * 4 * torch.finfo(x.dtype).eps
        out = Interval(out.lower * (1 - gap), out.upper * (1 + gap) + torch.where(high > 0, tiny, 0.0))
    return Interval(out.lower.clamp(0, 1), out.upper.clamp(0, 1))


@rule(Intervals, *overloads("log_softmax.int", "_log_softmax"))
def log_softmax(at: At, x: Interval, dim: int, *_: Any) -> Interval:
    """-log(1 + sum over the others of exp(x_j - x_i)) at the extreme corners."""
    top = x.upper.amax(dim, keepdim=True)

    def at_corner(own: Tensor, others: Tensor) -> Tensor:
        rest = torch.log(_others(torch.exp(others - top), dim)) + top
        return -F.softplus(rest - own)

    low, high = at_corner(x.lower, x.upper), at_corner(x.upper, x.lower)
    return at.domain.outward(low, high, 8 + x.shape[dim] ** 0.5, torch.maximum(low.abs(), x.magnitude))


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
