"""FullGrad: a score as the input's part and the part of every bias (Srinivas and Fleuret 2019).

Around an input each operation is its linear part plus a constant, and the constants telescope: the score is exactly
<x, dy/dx> plus the sum over operations of <constant, dy/d result>. For convolutions, dense layers, batch-norm (scale
and shift: beta - mean * scale), constant summands and clamps, the constant is a bias; a network of these and of
ReLUs, maxima and means is made up of them entirely. What smooth operations (GELU, softmax, layer-norm) have besides
is left out, and is what the sum then lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from microtome.errors import SubjectError
from microtome.interpret.gates import Gradients, added, batch_norm, convolution, linear, transposed
from microtome.interpret.graph import Graph, Node
from microtome.interpret.interpreter import At, Run, backward, concrete, requirements, rule, sources
from microtome.interpret.interval import Interval
from microtome.interpret.linear_bounds import batch_axes
from microtome.interpret.linear_walk import by_example
from microtome.interpret.operations import aten, overloads
from microtome.interpret.transposes import floating, to_shape

BOUNDED = overloads("clamp", "clamp_min", "clamp_max", "hardtanh", "relu6", "maximum", "minimum")
"""Piecewise linear, with constants of their own where they saturate."""


class BiasGradients(Gradients):
    """Gradients that note the part of every bias on the way; the state is a dict from node to that part."""

    name: ClassVar[str] = "full gradient"


def _spread(bias: Tensor, like: Tensor) -> Tensor:
    """[c] as it adds to [n, c, ...]."""
    return bias.reshape(-1, *(1 for _ in like.shape[2:]))


def _product(cotangent: Tensor, constant: Any) -> Tensor:
    """Nothing where nothing arrives, though the constant be minus infinity, as masks have it."""
    return torch.where(cotangent == 0, 0.0, cotangent * constant)


@rule(BiasGradients, aten.convolution.default)
def _convolution(at: At, cotangent: Tensor, x: Tensor, weight: Tensor, bias: Any, *geometry: Any) -> Any:
    if bias is not None:
        at.state[at.node] = cotangent * _spread(bias, cotangent)
    return convolution(at, cotangent, x, weight, bias, *geometry)


@rule(BiasGradients, aten.linear.default)
def _linear(at: At, cotangent: Tensor, x: Tensor, weight: Tensor, bias: Any = None) -> Any:
    if bias is not None:
        at.state[at.node] = cotangent * bias
    return linear(at, cotangent, x, weight, bias)


@rule(BiasGradients, aten.addmm.default)
def _addmm(at: At, cotangent: Tensor, bias: Tensor, *args: Any, **kwargs: Any) -> Any:
    if not at.wants(0):
        at.state[at.node] = cotangent * bias * kwargs.get("beta", 1)
    return transposed(at, cotangent, bias, *args, **kwargs)


@rule(BiasGradients, aten.batch_norm.default)
def _batch_norm(
    at: At, cotangent: Tensor, x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool,
    momentum: float, eps: float, *rest: Any,
) -> Any:  # fmt: skip
    if not training and var is not None:
        scale = (var + eps).rsqrt() * (1.0 if weight is None else weight)
        shift = (0.0 if bias is None else bias) - mean * scale
        at.state[at.node] = cotangent * _spread(shift, cotangent)
    elif bias is not None:
        at.state[at.node] = cotangent * _spread(bias, cotangent)
    return batch_norm(at, cotangent, x, weight, bias, mean, var, training, momentum, eps, *rest)


@rule(BiasGradients, *overloads("layer_norm", "group_norm"))
def _norm(
    at: At, cotangent: Tensor, x: Tensor, groups: Any, weight: Any = None, bias: Any = None, *rest: Any
) -> Any:
    if bias is not None:
        layers = isinstance(groups, list | tuple)
        at.state[at.node] = cotangent * (bias if layers else _spread(bias, cotangent))
    return transposed(at, cotangent, x, groups, weight, bias, *rest)


@rule(BiasGradients, *overloads("add.Tensor", "sub.Tensor"))
def _added(at: At, cotangent: Tensor, a: Any, b: Any, *, alpha: float = 1) -> Any:
    sign = -alpha if "sub" in str(at.node.target) else alpha
    tensors = [x for x in (a, b) if isinstance(x, Tensor)]
    if not (len(tensors) == 2 and len(at.tracked) == 2):
        position = next(iter(at.tracked))
        constant = b * sign if tensors[position] is a else a
        at.state[at.node] = _product(cotangent, constant)
    return added(at, cotangent, a, b, alpha=alpha)


@rule(BiasGradients, *BOUNDED, output=True)
def _bounded(at: At, cotangent: Tensor, *args: Any, **kwargs: Any) -> Any:
    shares = transposed(at, cotangent, *args, **kwargs)
    part = cotangent * at.output
    tensors = [x for x in args if isinstance(x, Tensor)]
    if len(at.tracked) == 1:
        position = next(iter(at.tracked))
        own = tensors[position] * shares[position]
        at.state[at.node] = part - own if own.shape == part.shape else to_shape(part, own.shape) - own
    return shares


@rule(BiasGradients, *overloads("cat", "stack", "where.self", "masked_fill.Scalar"))
def _joined(at: At, cotangent: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Constants that are put beside what depends on the input (a class token) count as biases."""
    real = floating(at)
    flat, tree = pytree.tree_flatten((args, kwargs))
    spots = [i for i, leaf in enumerate(flat) if isinstance(leaf, Tensor)]
    for position in real.tracked:
        flat[spots[position]] = torch.zeros_like(flat[spots[position]])
    again, named = pytree.tree_unflatten(flat, tree)
    constant = at.run(*again, **named)
    if bool(constant.any()):
        at.state[at.node] = _product(cotangent, constant)
    return real.transpose(cotangent, *args, **kwargs)


@dataclass(frozen=True, eq=False, kw_only=True)
class FullGradient:
    """The parts of a score.

    Attributes:
        slope: its gradient by each place, [n, ...].
        inputs: [n] the inputs' part, <x, slope>.
        biases: [n] the part of all biases.
        maps: biases by layer, [n, ...] each, in order of execution.
    """

    slope: dict[Node, Tensor]
    inputs: Tensor
    biases: Tensor
    maps: dict[Node, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        """[n] what should be the score."""
        return self.inputs + self.biases


def full_gradient(
    run: Run, seed: Tensor, places: dict[Node, Tensor], only: Callable[[Tensor], bool] = lambda _: True
) -> FullGradient:
    """Walk back from ``seed`` (the score's gradient by the output) and gather what inputs and biases contribute.

    Args:
        run: a forward run that kept what ``requirements`` lists for ``BiasGradients``.
        seed: shaped as the output.
        places: where to end, with their values.
        only: which layers' maps to keep.

    Raises:
        SubjectError: MT315 when the examples of a batch cannot be told apart at a bias.
    """
    parts: dict[Node, Tensor] = {}
    slope = backward(run, BiasGradients(), {run.graph.output: seed}, to=list(places), state=parts)
    count = next(iter(places.values())).shape[0]
    inputs = seed.new_zeros(count, dtype=torch.float64)
    for node, value in slope.items():
        inputs = inputs + (value * places[node]).double().flatten(1).sum(1)
    return FullGradient(
        slope=slope,
        inputs=inputs,
        biases=sum(_by_example(run, parts, places, count), torch.zeros_like(inputs)),
        maps={
            node: part for node, part in reversed(parts.items()) if part.shape[:1] == (count,) and only(part)
        },
    )


def decomposed(
    graph: Graph,
    args: Sequence[Any],
    slope: Tensor | Callable[[Tensor], Tensor],
    kwargs: Mapping[str, Any] | None = None,
    *,
    parameters: Mapping[str, Any] | None = None,
) -> tuple[FullGradient, dict[Node, Tensor]]:
    """The parts of the score whose gradient by the outputs is ``slope``, and the places they are read at."""
    goals = sources(graph)
    keep, shapes = requirements(graph, BiasGradients(), [graph.output], goals)
    with torch.no_grad():
        run = concrete(
            graph, args, kwargs, keep={*keep, *goals, *graph.inputs}, shapes=shapes, parameters=parameters
        )
        places = {node: run.values[node] for node in goals}
        return full_gradient(run, slope(run.output) if callable(slope) else slope, places), places


def _by_example(
    run: Run, parts: dict[Node, Tensor], places: dict[Node, Tensor], count: int
) -> Iterable[Tensor]:
    """[n] float64 for each part. The examples lie along the first axis, or where the program's shapes say."""
    boxes = {node: Interval(value, value) for node, value in places.items()}
    axes: Any = None
    for node, part in parts.items():
        if count == 1:
            yield part.double().sum()[None]
        elif part.shape[0] == count and (isinstance((node.shape or (0,))[0], str) or not run.graph.dynamic):
            yield part.double().flatten(1).sum(1)
        else:
            given = {n: run.values[n] for n in run.graph.inputs if n in run.values}
            axes = (batch_axes(run.graph, given, boxes) or {}) if axes is None else axes
            layout = axes.get(node)
            if layout is None:
                raise SubjectError(
                    "MT315", "the examples of the batch cannot be told apart", where=node.place(),
                    fix="give one example at a time",
                )  # fmt: skip
            yield by_example(part[None].double(), layout, count)[0].sum(1)


def saliency(found: FullGradient, places: dict[Node, Tensor], size: tuple[int, int]) -> Tensor:
    """[n, h, w]: each map's absolute value brought to 0..1 (over its example), enlarged, and summed over channels.

    As the authors' code does it: the input's part and the parts of the biases that have places [n, c, h, w].
    """
    node, x = next(iter(places.items()))
    layers = [x * found.slope[node], *(part for part in found.maps.values() if part.dim() == 4)]
    total = x.new_zeros(len(x), *size)
    for part in layers:
        flat = part.abs().flatten(1)
        low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
        scaled = ((flat - low) / (high - low + 1e-6)).reshape(part.shape)
        if scaled.shape[2:] != size:
            # Enlarging is linear, so the sum over channels may come first, and costs a channel's worth.
            summed = F.interpolate(
                scaled.sum(1, keepdim=True), size=size, mode="bilinear", align_corners=True
            )
            total = total + summed[:, 0]
        else:
            total = total + scaled.sum(1)
    return total
