"""How signals travel through one network, beside what mean-field theory says of networks with its variances.

A *stage* ends at a layer of weights. Its chi is sigma_w^2 times the mean squared slope of the functions since the
layer before: the factor by which a small difference, and the squared norm of a gradient, changes on the way (Schoenholz
et al. 2017). Theory starts from the inputs and knows the variances of weights and biases alone, layer by layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from microtome.errors import SubjectError
from microtome.interpret.graph import Graph, Node
from microtome.interpret.interpreter import forward, sources
from microtome.interpret.kernels import WEIGHTS, infinite_width_kernels
from microtome.interpret.patterns import as_double, doubled, widened


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One layer of weights, and the functions between it and the one before.

    Attributes:
        layer: as a reader knows it.
        functions: their names.
        units: numbers a value has, positions included.
        sigma_w: deviation of its weights times the root of the fan-in.
        sigma_b: deviation of its biases.
        chi: see above; None for the first.
        variance: mean square of its values.
        told: the same, predicted.
        correlation: mean cosine of two inputs; None where there is one input, or a value is 0.
        correlation_told: the same, predicted.
    """

    layer: str
    functions: tuple[str, ...]
    units: int
    sigma_w: float
    sigma_b: float
    chi: float | None
    variance: float
    told: float
    correlation: float | None
    correlation_told: float | None


def propagation(graph: Graph, x: Tensor) -> tuple[Stage, ...]:
    """The stages of a network on inputs [n, ...].

    Raises:
        SubjectError: MT376 unless one real-valued input enters; MT310 or MT374 for what has no rule.
    """
    places = sources(graph)
    if len(graph.inputs) != 1 or places != graph.inputs:
        raise SubjectError(
            "MT376", "the network does not take one real-valued input", fix="ask about one that does"
        )
    given = {places[0]: x}
    found = infinite_width_kernels(graph, given, layers="weights", output=_last_weights(graph))
    steps, told = found.steps, found.at
    weights = [s.node for s in steps if s.kind == "weights"]
    wide = doubled(graph)
    with torch.no_grad():
        run = forward(wide, as_double(given), replace=widened(wide), targets=weights)
    stages: list[Stage] = []
    functions: list[str] = []
    slope = 1.0
    for step in steps:
        if step.kind == "function":
            slope *= step.slope
            functions.append(step.node.operation.split(".")[1])
            continue
        values = run.values[step.node].flatten(1)
        gram, predicted = values @ values.T / values.shape[1], told[step.node.name].nngp
        stages.append(Stage(
            layer=step.node.layer or step.node.name, functions=tuple(functions), units=values.shape[1],
            sigma_w=step.sigma_w, sigma_b=step.sigma_b, chi=step.sigma_w**2 * slope if stages else None,
            variance=float(gram.diagonal().mean()), told=float(predicted.diagonal().mean()),
            correlation=_cosine(gram), correlation_told=_cosine(predicted),
        ))  # fmt: skip
        slope, functions = 1.0, []
    return tuple(stages)


def _last_weights(graph: Graph) -> str | None:
    """What comes after the last layer of weights (a softmax) needs no meaning here."""
    on_the_way = graph.needed([graph.output])
    found = [n.name for n in graph.operations if n.target in WEIGHTS and n in on_the_way]
    return found[-1] if found else None


def _cosine(gram: Tensor) -> float | None:
    """Mean over pairs of different inputs."""
    size = gram.diagonal().clamp(min=0).sqrt()
    i, j = torch.triu_indices(len(gram), len(gram), 1)
    if not len(i) or not bool((size > 0).all()):
        return None
    return float((gram[i, j] / (size[i] * size[j])).clamp(-1, 1).mean())


def branches(graph: Graph) -> tuple[Node, ...]:
    """Sums of two values that depend on the input: the chi of a branch is not that of the network."""
    moving = graph.reached(graph.inputs)
    adds = [n for n in graph.operations if n.operation.startswith(("aten.add.", "aten.sub."))]
    return tuple(n for n in adds if sum(operand in moving for operand in n.operands) > 1)


__all__ = ["Stage", "branches", "propagation"]
