"""The empirical tangent kernel, without the Jacobian: products by jvp and vjp, Gram matrices of gradients in chunks.

J is the matrix of slopes of the k answers of each example by the p parameters, Theta = J J^T [n k, n k] the empirical
neural tangent kernel. ``TangentProducts`` is J u, ``pulled_back`` is J^T v (a gradient, summed over slices), so that
J J^T v takes two passes and memory for p numbers. ``TangentKernel`` is Theta between each example and a few anchors, or
its stand-in of Mohamadi, Bae & Sutherland 2023: the kernel of the sum of the answers over root k, [n, m] instead of
[n k, m k].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.func import grad, jacrev, jvp, vmap

from microtome.errors import Refusal
from microtome.interpret import Node, forward
from microtome.signals import Constant, Signal, derive, gradient, outputs, rows, task
from microtome.signals.capture import is_out_of_memory
from microtome.signals.interpretation import Interpretation, Scene
from microtome.task import Task

Outputs = Literal["sum", "all"]
_CHUNK = 1 << 27
"""Bytes of gradients held at once."""


class _Tangents:
    """A subject's answers as a function of its parameters, on the scene's program."""

    def __init__(self, scene: Scene) -> None:
        (place, *more), subject = scene.places, scene.subject
        if more or place.kind != "input" or len(scene.graph.inputs) > 1 or not scene.batch.divisible:
            raise Refusal(
                "tangent kernels are taken of networks with one real-valued input and independent examples"
            )
        self.scene, self.place, self.x = scene, place, scene.places[place]
        self.point = {n: scene.parameters.get(n, p) for n, p in subject.parameters.items()}
        if not self.point:
            raise Refusal("the network has no parameters")
        first = {id(t): name for name, t in subject.model.named_parameters()}
        self.names = {name: first.get(id(held), name) for name, held in scene.graph.state.items()}

    def answers(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """[b, ...] -> [b, k], logits where the network gives probabilities."""
        held = {name: parameters[own] for name, own in self.names.items() if own in parameters}
        given: dict[Node, Tensor] = {self.place: x}
        graph = self.scene.graph
        run = forward(graph, given, parameters={**self.scene.parameters, **held}, targets=[graph.output])
        return self.scene.subject.task.unscaled(run.output).reshape(len(x), -1)

    def gradients(self, x: Tensor, which: Outputs) -> dict[str, Tensor]:
        """[b, ...] of the sum over root k, or [b, k, ...] of every answer, by parameter."""

        def total(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
            found = self.answers(parameters, row[None])
            return found.sum() / found.shape[1] ** 0.5

        def every(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
            return self.answers(parameters, row[None])[0]

        one: Callable[..., dict[str, Tensor]] = grad(total) if which == "sum" else jacrev(every)
        try:
            return vmap(one, in_dims=(None, 0))(self.point, x)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            each = [one(self.point, row) for row in x]  # operations without a batching rule
            return {name: torch.stack([g[name] for g in each]) for name in self.point}

    def pieces(self, x: Tensor, which: Outputs) -> Iterator[dict[str, Tensor]]:
        """Gradients of a few rows at a time."""
        width = self.answers(self.point, x[:1]).shape[1] if which == "all" else 1
        each = width * sum(p.numel() * p.element_size() for p in self.point.values())
        for part in x.split(max(_CHUNK // each, 1)):
            yield self.gradients(part, which)


@dataclass(frozen=True)
class TangentKernel(Interpretation):
    """The tangent kernel between each example and anchors.

    [n, m] of the sum of the answers over root k (``outputs="sum"``), or [n, k, m, k] of all; float64. ``anchors``
    [m, ...] are inputs. An example's row depends on nothing else in its slice.
    """

    anchors: Constant
    outputs: Outputs = "sum"
    cost = 12.0
    memory = 8.0

    def read(self, scene: Scene) -> Tensor:
        """Products of gradients, parameter by parameter."""
        tangents = _Tangents(scene)
        other = self.anchors.value.to(tangents.x)
        down = []
        for mine in tangents.pieces(tangents.x, self.outputs):
            across = [
                _products(mine, theirs, self.outputs) for theirs in tangents.pieces(other, self.outputs)
            ]
            down.append(torch.cat(across, -1 if self.outputs == "sum" else -2))
        return torch.cat(down)


def _products(a: Mapping[str, Tensor], b: Mapping[str, Tensor], which: Outputs) -> Tensor:
    lead = 1 if which == "sum" else 2
    total: Tensor | None = None
    for name, left in a.items():
        right = b[name]
        product = left.reshape(*left.shape[:lead], -1).flatten(0, -2).double() @ (
            right.reshape(*right.shape[:lead], -1).flatten(0, -2).double().T
        )
        total = product if total is None else total + product
    assert total is not None
    some, other = next(iter(a.values())), next(iter(b.values()))
    return total.reshape(*some.shape[:lead], *other.shape[:lead])


@dataclass(frozen=True)
class TangentProducts(Interpretation):
    """[n, k] J u: how the answers move when the parameters move along ``direction`` [p]; one forward-mode product."""

    direction: Constant
    cost = 3.0
    memory = 8.0

    def read(self, scene: Scene) -> Tensor:
        """In the type of the parameters."""
        tangents = _Tangents(scene)
        parts = scene.subject.split_parameters(self.direction.value)
        moves = {name: parts[name].to(p) for name, p in tangents.point.items()}
        return jvp(lambda parameters: tangents.answers(parameters, tangents.x), (tangents.point,), (moves,))[
            1
        ]


def pulled_back(weights: Constant) -> Signal:
    """[p] J^T v, summed over the slice: ``weights`` [n, k] are v, and say by ``rows`` whose they are."""
    return gradient(derive(_weighted, outputs, rows, task, weights, name="weighted_answers"), "parameters")


def _weighted(outputs: Tensor, rows: Tensor, task: Task, weights: Constant) -> Tensor:
    answers = task.unscaled(outputs).reshape(len(outputs), -1)
    return (answers * weights.for_rows(rows).to(answers)).sum(1)


def summed_answers() -> Signal:
    """[n] the sum of an example's answers over root k; the squared norm of its gradient is the kernel's diagonal."""
    return derive(_summed, outputs, task, name="summed_answers")


def _summed(outputs: Tensor, task: Task) -> Tensor:
    answers = task.unscaled(outputs).reshape(len(outputs), -1)
    return answers.sum(1) / answers.shape[1] ** 0.5


__all__ = ["TangentKernel", "TangentProducts", "pulled_back", "summed_answers"]
