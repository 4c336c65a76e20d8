"""Gradients, and the variants that change what a ReLU lets back: gates are the only thing they differ in.

- ``Gradients``: the transposed Jacobian of every operation, the gradient of autograd;
- ``GuidedBackprop``: a ReLU lets back what is positive, where it was active (Springenberg et al. 2015);
- ``DeconvNet``: a ReLU lets back what is positive, wherever (Zeiler and Fergus 2014); max-pools by their switches;
- ``ExcitationPullback``: a ReLU lets back the share sigmoid(pre-activation / temperature) (Satkiewicz 2025); at a
  temperature of 0 it is the gradient.

Only ReLUs are changed: other activations have no gate of zeros and ones that these methods speak of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ClassVar

import torch
from torch import Tensor

from microtome.interpret.graph import Graph, Node
from microtome.interpret.interpreter import (
    At,
    Domain,
    Rule,
    backward,
    concrete,
    requirements,
    rule,
    sources,
)
from microtome.interpret.operations import STRUCTURAL, aten, overloads
from microtome.interpret.transposes import back_through_convolution, floating, to_shape

RECTIFIERS = overloads("relu", "relu_")


def rectifiers(graph: Graph) -> tuple[Node, ...]:
    """The ReLUs of a program."""
    return tuple(node for node in graph.operations if node.target in RECTIFIERS)


def pulled_back(
    graph: Graph,
    args: Sequence[Any],
    slope: Tensor | Callable[[Tensor], Tensor],
    domain: Domain,
    kwargs: Mapping[str, Any] | None = None,
    *,
    parameters: Mapping[str, Any] | None = None,
    to: Iterable[Node] | None = None,
) -> dict[Node, Tensor]:
    """What arrives at the inputs (or embeddings, or nodes ``to``) by one of the domains here.

    ``slope`` is the gradient of the score in question by the outputs, or how to get it of them.
    """
    goals = list(to) if to is not None else list(sources(graph))
    keep, shapes = requirements(graph, domain, [graph.output], goals)
    with torch.no_grad():
        run = concrete(graph, args, kwargs, keep=keep, shapes=shapes, parameters=parameters)
        seed = slope(run.output) if callable(slope) else slope
        return backward(run, domain, {graph.output: seed}, to=goals)


class Gradients(Domain):
    """The gradient. Every operation has a transposed Jacobian, so none is missing."""

    name: ClassVar[str] = "gradient"

    def missing(self, node: Node) -> Rule | None:
        """The transposed Jacobian by autograd."""
        return transposed


def transposed(at: At, cotangent: Any, *args: Any, **kwargs: Any) -> list[Any]:
    """What autograd gives, for operands that hold real numbers."""
    return floating(at).transpose(cotangent, *args, **kwargs)


rule(Gradients, *dict.fromkeys(STRUCTURAL), keep="shapes")(transposed)


@rule(Gradients, *RECTIFIERS, keep="nothing", output=True)
def rectified(at: At, cotangent: Tensor) -> Tensor:
    """Where it was active."""
    return cotangent * (at.output > 0)


@rule(Gradients, *overloads("add.Tensor", "sub.Tensor"), keep="shapes")
def added(at: At, cotangent: Tensor, a: Any, b: Any, *, alpha: float = 1) -> list[Any]:
    """To both summands."""
    signs = (1.0, -alpha if "sub" in str(at.node.target) else alpha)
    given = [(x, sign) for x, sign in zip((a, b), signs, strict=True) if isinstance(x, Tensor)]
    return [
        to_shape(cotangent if sign == 1 else cotangent * sign, x.shape) if at.wants(i) else None
        for i, (x, sign) in enumerate(given)
    ]


def _fixed_weights(function: Any) -> Any:
    """For maps whose weights do not depend on the input; the general rule otherwise."""

    @wraps(function)
    def chosen(at: At, cotangent: Tensor, *args: Any, **kwargs: Any) -> Any:
        if at.tracked == {0}:
            return [function(at, cotangent, *args), *[None] * (len(at.node.operands) - 1)]
        return at.transpose(cotangent, *args, **kwargs)

    return chosen


@rule(Gradients, aten.convolution.default)
@_fixed_weights
def convolution(at: At, cotangent: Tensor, x: Tensor, weight: Tensor, bias: Any, *geometry: Any) -> Tensor:
    """The transposed convolution."""
    return back_through_convolution(cotangent, x, weight, geometry)


@rule(Gradients, aten.linear.default)
@_fixed_weights
def linear(at: At, cotangent: Tensor, x: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
    """The transposed matrix."""
    return cotangent @ weight


@rule(Gradients, aten.batch_norm.default)
@_fixed_weights
def batch_norm(
    at: At, cotangent: Tensor, x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool,
    momentum: float, eps: float, *_: Any,
) -> Tensor:  # fmt: skip
    """Scaled; statistics of the batch are differentiated too."""
    if training or var is None:
        found: Tensor = at.transpose(cotangent, x, weight, bias, mean, var, training, momentum, eps, False)[0]
        return found
    scale = (var + eps).rsqrt() * (1.0 if weight is None else weight)
    return cotangent * scale.reshape(-1, *(1 for _ in x.shape[2:]))


class GuidedBackprop(Gradients):
    """A ReLU lets back what is positive, where it was active."""

    name: ClassVar[str] = "guided backpropagation"


@rule(GuidedBackprop, *RECTIFIERS, keep="nothing", output=True)
def guided(at: At, cotangent: Tensor) -> Tensor:
    """Positive signal, active unit."""
    return cotangent.clamp(min=0) * (at.output > 0)


class DeconvNet(Gradients):
    """A ReLU lets back what is positive."""

    name: ClassVar[str] = "deconvnet"


@rule(DeconvNet, *RECTIFIERS, keep="nothing")
def deconvolved(at: At, cotangent: Tensor) -> Tensor:
    """Positive signal."""
    return cotangent.clamp(min=0)


@dataclass(frozen=True, repr=False)
class ExcitationPullback(Gradients):
    """A ReLU lets back sigmoid(pre-activation / temperature) of the signal."""

    name: ClassVar[str] = "excitation pullback"
    temperature: float = 0.3


@rule(ExcitationPullback, *RECTIFIERS)
def excited(at: At, cotangent: Tensor, x: Tensor) -> Tensor:
    """Softly gated; at a temperature of 0, where the pre-activation is positive."""
    temperature = at.domain.temperature
    return cotangent * ((x / temperature).sigmoid() if temperature > 0 else (x > 0).to(x.dtype))
