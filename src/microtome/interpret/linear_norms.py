"""Linear-bounds rules of softmax, normalisations and maxima."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from microtome.interpret.curves import CURVES
from microtome.interpret.graph import Node
from microtome.interpret.interpreter import At, rule
from microtome.interpret.interval import Interval, Intervals, interval_of
from microtome.interpret.interval_norms import centred
from microtome.interpret.linear_walk import EXACT, LinearBounds, Walk, fitted_lines, through_lines
from microtome.interpret.operations import aten, overloads


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
    found: Interval = p.rule(At(at.node, EXACT), x, dim, False)
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

    def inner(self, node: Node, a: Tensor, constant: Tensor) -> None:
        """Add the sums of a times a constant."""
        self.add(node, a * constant)


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
    d = centred(EXACT, x, dims) if subtract_mean else x
    least, most = CURVES[aten.square.default]().range(d.lower, d.upper)
    slack = EXACT.gamma(math.prod(x.shape[i] for i in dims), x.dtype)
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
def constant_bounds(at: At, a: Any, *_: Any, **__: Any) -> list[Any]:
    """The result's own interval: sound, and nothing goes further back."""
    several = isinstance(a, tuple | list)  # results of one operation, and what arrived for each
    for rows, output in zip(a, at.output, strict=True) if several else [(a, at.output)]:
        if rows is not None:
            found = interval_of(output)
            at.state.add(at.node, torch.where(rows > 0, found.lower, found.upper) * rows)
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
