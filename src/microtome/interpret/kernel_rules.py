"""Rules of the domain ``infinite width``: one a kind of operation.

Weights: K' = sigma_w^2 K + sigma_b^2. NTK of a layer: what its own weights add, and what came before times sigma_w^2
(Jacot et al. 2018; Arora et al. 2019 for convolutions). Functions: duals of the covariances, NTK times the dual of the
slope. Sums: of values that share no random weight that one of them is linear in; others have no recursion.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from microtome.interpret.curves import CURVES
from microtome.interpret.dual_activations import dual
from microtome.interpret.gaussian import nonlinearity
from microtome.interpret.interpreter import At, missing_rule, rule
from microtome.interpret.kernel_domain import (
    InfiniteWidth,
    Kernel,
    Layer,
    Random,
    Wide,
    begun,
    refused,
    settled,
)
from microtome.interpret.operations import aten, overloads

_TRANSPARENT = overloads("clone", "alias", "detach", "contiguous", "dropout", "lift_fresh_copy", "_to_copy")
_POOLS = overloads(
    *("mean.dim", "sum.dim_IntList", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d"),
    *("adaptive_avg_pool2d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d"),
)
_NOT_EVERYWHERE = frozenset(overloads("log", "sqrt", "rsqrt", "reciprocal"))

# --- weights


def _weights(
    at: At, x: Kernel, weight: Any, bias: Any, fan_in: int, nngp: Tensor, ntk: Tensor, **shape: Any
) -> Kernel:
    """A layer of random weights; ``nngp`` and ``ntk`` are means over what one output sees."""
    if weight.name in x.history:
        raise refused(at, f"uses the weights '{weight.name}' again: recursions need fresh ones")
    w, b = at.domain.deviations(weight, bias, fan_in)
    result = w * nngp + b
    own = (
        fan_in * nngp + (0.0 if bias is None else 1.0) if at.domain.parametrization == "standard" else result
    )
    at.domain.layers.append(Layer(at.node, "weights", w**0.5, b**0.5))
    names = frozenset([weight.name])
    made = x.moved(
        result, own + w * ntk, gaussian=True, fresh=names, history=x.history | names, **shape
    )  # fmt: skip
    return settled(at, made)


def _input(at: At, x: Any, weight: Any, unit: int) -> Kernel:
    if not isinstance(weight, Random):
        raise refused(at, "has weights that are not parameters")
    if isinstance(x, Random):
        raise refused(at, "multiplies parameters")
    return x if isinstance(x, Kernel) else begun(at, x, unit)


@rule(InfiniteWidth, aten.linear.default)
def linear(at: At, x: Any, weight: Any, bias: Any = None) -> Kernel:
    """Every position alike; a flattened value is averaged over its positions."""
    x = _input(at, x, weight, x.dim() - 1 if isinstance(x, Tensor) else -1)
    outputs, fan_in = weight.shape
    shape = torch.Size([*x.shape[:-1], outputs])
    if x.unit is None:
        nngp, ntk = (k.mean(2, keepdim=True) for k in x.same)
        full = at.node in at.domain.full
        nngp, ntk = (k[..., None] if full else k for k in (nngp, ntk))
        return _weights(at, x, weight, bias, fan_in, nngp, ntk, shape=shape, sizes=(), unit=1)
    if x.unit != len(x.shape) - 1:
        raise refused(at, "mixes positions by random weights")
    return _weights(at, x, weight, bias, fan_in, x.nngp, x.ntk, shape=shape)


@rule(InfiniteWidth, aten.convolution.default)
def convolution(at: At, x: Any, weight: Any, bias: Any, *options: Any) -> Kernel:
    """Means over the taps, of any dimension, stride, padding and dilation."""
    stride, padding, dilation, transposed, _, groups = options
    if transposed or groups != 1:
        raise refused(
            at, f"is {'transposed' if transposed else 'in groups'}: it has no rule at infinite width"
        )
    x = _input(at, x, weight, 1)
    if x.unit != 1:
        raise refused(at, "does not find its units along dimension 1")
    taps = tuple(weight.shape[2:])
    places, sizes = _windows(x.sizes, taps, tuple(stride), tuple(padding), tuple(dilation))
    at.domain.affordable(at, len(x.nngp), len(places), x.full)
    nngp, ntk = (_over_taps(k, places) for k in (x.nngp, x.ntk))
    shape = torch.Size([x.shape[0], weight.shape[0], *sizes])
    return _weights(at, x, weight, bias, weight.tensor[0].numel(), nngp, ntk, shape=shape, sizes=sizes)


@functools.lru_cache(maxsize=64)
def _windows(
    sizes: tuple[int, ...], taps: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[Tensor, tuple[int, ...]]:  # fmt: skip
    """[p', taps] which position each tap sees, the number of positions for padding; and the sizes of the result."""
    place, inside = torch.zeros((), dtype=torch.long), torch.ones((), dtype=torch.bool)
    result = []
    for size, k, s, pad, d in zip(sizes, taps, stride, padding, dilation, strict=True):
        count = (size + 2 * pad - d * (k - 1) - 1) // s + 1
        seen = torch.arange(count)[:, None] * s - pad + torch.arange(k) * d
        grown = seen.reshape(*[1] * place.dim(), *seen.shape)
        place = place[..., None, None] * size + grown
        inside = inside[..., None, None] & (grown >= 0) & (grown < size)
        result.append(count)
    order = [*range(0, place.dim(), 2), *range(1, place.dim(), 2)]
    place = torch.where(inside, place, math.prod(sizes)).permute(order)
    return place.reshape(math.prod(result), math.prod(taps)), tuple(result)


def _over_taps(kernel: Tensor, places: Tensor) -> Tensor:
    """Mean over taps of the kernel at the positions they see; padding is 0. A step a tap, not a position."""
    full = kernel.dim() == 4
    padded = torch.nn.functional.pad(kernel, (0, 1, 0, 1) if full else (0, 1))
    total = torch.zeros(())
    for seen in places.T:
        part = padded.index_select(2, seen)
        total = total + (part.index_select(3, seen) if full else part)
    return total / places.shape[1]


# --- functions


@rule(
    InfiniteWidth,
    *[op for op in CURVES if op not in _NOT_EVERYWHERE],
    *overloads("sin", "cos", "relu_", "prelu"),
)
def function(at: At, x: Any, *args: Any, **kwargs: Any) -> Kernel:
    """A function of one number: duals of all pairs, each computed once."""
    if not isinstance(x, Kernel):
        raise missing_rule(at.node, at.domain)
    if not x.gaussian:
        raise refused(
            at,
            "is applied to a value that is not Gaussian",
            "put a layer of weights before it, or a uniform batch-norm",
        )
    plain = [_one_number(at, a) for a in args]
    f = nonlinearity(_named(at, plain, kwargs))
    variances = x.same[0].diagonal(dim1=0, dim2=1).T  # [n, p]
    n, p = variances.shape
    if x.full:  # all pairs of (input, position)
        flat = x.nngp.permute(0, 2, 1, 3).reshape(1, n * p, n * p)
        sizes = variances.reshape(1, n * p)
    else:
        flat, sizes = x.nngp.permute(2, 0, 1), variances.T
    i, j = torch.triu_indices(flat.shape[1], flat.shape[1])
    value, slope = dual(f, sizes[:, i].flatten(), sizes[:, j].flatten(), flat[:, i, j].flatten())
    k, d = (_symmetric(v.reshape(len(flat), -1), i, j) for v in (value, slope))
    if x.full:
        k, d = (v.reshape(n, p, n, p).permute(0, 2, 1, 3) for v in (k, d))
    else:
        k, d = (v.permute(1, 2, 0) for v in (k, d))
    made = x.moved(k, d * x.ntk, gaussian=False, fresh=None)
    at_one = x.moved(d, d).same[0].diagonal(dim1=0, dim2=1)
    at.domain.layers.append(Layer(at.node, "function", slope=float(at_one.mean())))
    return settled(at, made)


def _named(at: At, args: list[Any], kwargs: Any) -> Any:
    def applied(x: Tensor) -> Tensor:
        return at.node.target(x, *args, **kwargs)

    applied.__name__ = at.node.operation.split(".")[1]
    return applied


def _one_number(at: At, value: Any) -> Any:
    if isinstance(value, Random):
        if value.tensor.numel() != 1:
            raise refused(at, "has parameters of its own for each unit")
        return value.tensor.detach()
    if isinstance(value, Kernel):
        raise refused(at, "joins two random values")
    return value


def _symmetric(values: Tensor, i: Tensor, j: Tensor) -> Tensor:
    size = int(i.max()) + 1
    whole = values.new_zeros(len(values), size, size)
    whole[:, i, j] = values
    whole[:, j, i] = values
    return whole


# --- sums and scales


def _summand(at: At, x: Any, like: Kernel) -> Kernel:
    if isinstance(x, Kernel):
        return x
    if isinstance(x, Tensor) and x.shape == like.shape and like.unit is not None:
        made = begun(at, x, like.unit)
        return made if like.full else made.narrowed()
    raise refused(at, "adds something other than a like value")


@rule(InfiniteWidth, *overloads("add.Tensor", "sub.Tensor"))
def add(at: At, a: Any, b: Any, *, alpha: float = 1) -> Kernel:
    """Of values without common weights kernels add up, for their products have mean 0."""
    if isinstance(a, Random) or isinstance(b, Random):
        raise refused(at, "adds a parameter by itself", "use the bias of a layer")
    some = a if isinstance(a, Kernel) else b
    if any(isinstance(v, int | float) and v == 0 for v in (a, b)):
        return settled(at, some)
    first, second = _summand(at, a, some), _summand(at, b, some)
    if first.shape != second.shape or first.unit != second.unit:
        raise refused(at, "adds values of different shape")
    apart = [x.fresh is not None and not x.fresh & y.history for x, y in ((first, second), (second, first))]
    if not any(apart):
        raise refused(at, "adds values that share their last weights, or have none")
    if first.full != second.full:
        first, second = first.narrowed(), second.narrowed()
    fresh = None if first.fresh is None or second.fresh is None else first.fresh | second.fresh
    return settled(at, first.moved(
        first.nngp + alpha**2 * second.nngp, first.ntk + alpha**2 * second.ntk,
        gaussian=first.gaussian and second.gaussian, fresh=fresh, history=first.history | second.history,
    ))  # fmt: skip


@rule(InfiniteWidth, *overloads("mul.Tensor", "mul.Scalar", "div.Tensor", "div.Scalar"))
def scale(at: At, a: Any, b: Any) -> Kernel:
    """By a number."""
    x, factor = (a, b) if isinstance(a, Kernel) else (b, a)
    divides = at.node.target in overloads("div.Tensor", "div.Scalar")
    if not isinstance(x, Kernel) or isinstance(factor, Wide) or (divides and x is b):
        raise refused(at, "multiplies random values")
    number = torch.as_tensor(factor, dtype=torch.float64)
    if number.numel() != 1:
        raise refused(at, "multiplies units by different numbers")
    square = float(number) ** (-2 if divides else 2)
    return settled(at, x.moved(square * x.nngp, square * x.ntk))


@rule(InfiniteWidth, aten.neg.default)
def negated(at: At, x: Any) -> Kernel:
    """The sign falls out."""
    return settled(at, x)


@rule(InfiniteWidth, aten.batch_norm.default)
def batch_norm(
    at: At, x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: bool, *rest: Any
) -> Kernel:
    """By the statistics it holds: an affine map a unit. One that differs from unit to unit leaves no Gaussian."""
    if not isinstance(x, Kernel) or x.unit != 1:
        raise missing_rule(at.node, at.domain)
    if training or mean is None:
        raise refused(at, "normalises by the batch")
    inverse = (var.double() + rest[1]).rsqrt()
    scale = inverse if weight is None else weight.tensor.double() * inverse
    shift = -mean.double() * scale + (0.0 if bias is None else bias.tensor.double())
    square, moved = float(scale.square().mean()), float(shift.square().mean())
    if moved > 0 and not x.gaussian:
        raise refused(at, "moves a value whose mean is not 0")
    alike = moved == 0 and float(scale.std(unbiased=False)) <= 1e-6 * float(scale.abs().mean())
    ntk = square * x.ntk
    if at.domain.parametrization == "standard" and weight is not None:
        ntk = ntk + float(inverse.square().mean()) * x.nngp + 1.0
    return settled(at, x.moved(
        square * x.nngp + moved, ntk, gaussian=x.gaussian and alike, fresh=x.fresh if moved == 0 else None
    ))  # fmt: skip


# --- positions


@rule(InfiniteWidth, *_TRANSPARENT)
def unchanged(at: At, x: Any, *args: Any, **kwargs: Any) -> Kernel:
    """Nothing happens in eval mode."""
    if isinstance(x, Random):
        raise refused(at, "reads a parameter outside of a layer")
    return settled(at, x)


@rule(InfiniteWidth, *_POOLS)
def pool(at: At, x: Any, *args: Any, **kwargs: Any) -> Kernel:
    """A linear map of positions, the same for every unit: its matrix, from both sides."""
    if not isinstance(x, Kernel) or x.unit is None or not x.sizes:
        raise refused(at, "averages units")
    rank = len(x.shape)
    dims = (args[0] or range(rank)) if at.node.target in overloads("mean.dim", "sum.dim_IntList") else ()
    if {d % rank for d in dims} & {0, x.unit}:
        raise refused(at, "averages units or inputs")
    p = math.prod(x.sizes)
    images = torch.eye(p, dtype=torch.float64).reshape(p, 1, *x.sizes).movedim(1, x.unit)
    out = at.node.target(images, *args, **kwargs)
    shape = at.node.target(torch.empty(x.shape, device="meta"), *args, **kwargs).shape
    keeps = out.dim() == rank
    unit = x.unit if keeps else 1 if x.unit == 1 else out.dim() - 1
    matrix = out.reshape(p, -1).T  # [p', p]
    nngp, ntk = (torch.einsum("ap,ijpq,bq->ijab", matrix, k, matrix) for k in (x.nngp, x.ntk))
    sizes = tuple(s for d, s in enumerate(shape) if d not in (0, unit))
    return settled(at, x.moved(nngp, ntk, shape=shape, sizes=sizes, unit=unit))


@rule(InfiniteWidth, *overloads("view", "reshape", "_unsafe_view", "squeeze.dim", "squeeze.dims"))
def reshaped(at: At, x: Any, *args: Any, **kwargs: Any) -> Kernel:
    """Flattening, and what only adds or drops dimensions of length 1."""
    if not isinstance(x, Kernel):
        raise refused(at, "reshapes a parameter")
    shape = at.node.target(torch.empty(x.shape, device="meta"), *args, **kwargs).shape
    if shape == x.shape:
        return settled(at, x)
    single = math.prod(x.sizes) == 1
    if len(shape) == 2 and shape[0] == x.shape[0]:
        if single and not x.full:
            return settled(at, x.moved(x.nngp, x.ntk, shape=shape, sizes=(), unit=1))
        return x.narrowed().moved(*x.same, shape=shape, sizes=(math.prod(x.sizes),), unit=None)
    if single and x.unit == 1 and shape[:2] == x.shape[:2]:
        return settled(at, x.moved(x.nngp, x.ntk, shape=shape, sizes=tuple(shape[2:])))
    raise refused(at, f"gives {list(x.shape)} the shape {list(shape)}, which only flattening may")


@rule(InfiniteWidth, *overloads("permute", "transpose.int"))
def permuted(at: At, x: Any, *args: Any, **kwargs: Any) -> Kernel:
    """Dimensions change places; inputs stay along the first."""
    if not isinstance(x, Kernel) or x.unit is None:
        raise refused(at, "moves a parameter, or flattened units")
    rank = len(x.shape)
    marks = torch.empty(tuple(range(2, rank + 2)), device="meta")  # every dimension has its own length
    order = [size - 2 for size in at.node.target(marks, *args, **kwargs).shape]
    if order[0] != 0:
        raise refused(at, "moves the inputs away from the first dimension")
    unit = order.index(x.unit)
    p = math.prod(x.sizes)
    before = torch.arange(p).reshape(1, *x.sizes).movedim(0, x.unit - 1)[None]
    index = before.permute(order).flatten()
    moved = [k.index_select(2, index) for k in (x.nngp, x.ntk)]
    nngp, ntk = (k.index_select(3, index) if x.full else k for k in moved)
    shape = torch.Size([x.shape[d] for d in order])
    sizes = tuple(s for d, s in enumerate(shape) if d not in (0, unit))
    return settled(at, x.moved(nngp, ntk, shape=shape, sizes=sizes, unit=unit))


POOLS = frozenset(_POOLS)
