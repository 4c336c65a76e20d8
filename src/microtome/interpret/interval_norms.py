"""Interval rules of normalisations and softmax, and the range of each entry given the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from microtome.errors import SubjectError
from microtome.interpret.curves import CURVES
from microtome.interpret.interpreter import At, rule
from microtome.interpret.interval_domain import Interval, Intervals, linear_map, per_channel, scaled
from microtome.interpret.operations import aten, overloads


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
        # not softplus: torch's is off by 2e-9 beyond its threshold
        return -torch.logaddexp(torch.zeros_like(own), rest - own)

    low, high = at_corner(x.lower, x.upper), at_corner(x.upper, x.lower)
    return at.domain.outward(low, high, 8 + x.shape[dim] ** 0.5, torch.maximum(low.abs(), x.magnitude))
