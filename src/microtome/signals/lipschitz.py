"""How fast outputs move with the input: slopes at each example, and bounds on them in a box around it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from microtome.errors import Refusal, SubjectError
from microtome.interpret.interval import Interval
from microtome.interpret.lipschitz import Norm, jacobians, lipschitz, matrix_norm, needed
from microtome.signals.interpretation import Interpretation, Scene


@dataclass(frozen=True)
class JacobianNorms(Interpretation):
    """[n] norm of the matrix of slopes of the outputs by the input: a lower bound of the Lipschitz constant.

    Of more than ``most`` outputs the first are read, which is a lower bound still.
    """

    norm: Norm = "2"
    most: int = 64
    cost = 30.0
    memory = 8.0

    def read(self, scene: Scene) -> Tensor:
        """As float64."""
        if not scene.batch.divisible:
            raise Refusal("examples reach one another: an example has no slope of its own")
        keep, shapes = needed(scene.graph, scene.places)
        run = scene.run(keep=keep, shapes=shapes)
        return matrix_norm(jacobians(run, scene.places, self.most).double(), self.norm)


@dataclass(frozen=True)
class LocalBounds(Interpretation):
    """[n] upper bounds in the box of half-width ``radius`` around each example."""

    radius: float
    norm: Norm = "2"
    cost = 60.0
    memory = 8.0

    def read(self, scene: Scene) -> Tensor:
        """As float64."""
        if len(scene.places) != 1 or not scene.batch.divisible:
            raise Refusal("a box is put around one input of an example")
        (x,) = scene.places.values()
        found = []
        for i in range(len(x)):
            inputs = {
                node: value[i : i + 1]
                if isinstance(value, Tensor) and value.dim() and len(value) == len(x)
                else value
                for node, value in scene.inputs.items()
            }
            box = Interval.around(x[i : i + 1], self.radius)
            try:
                bound = lipschitz(
                    scene.graph,
                    self.norm,
                    box=box,
                    inputs=inputs,
                    parameters=scene.parameters,
                    estimates=False,
                )
            except SubjectError as error:
                raise Refusal(str(error)) from error
            found.append(bound.value)
        return torch.tensor(found, dtype=torch.float64)


__all__ = ["JacobianNorms", "LocalBounds"]
