"""Costs of every operation of the program on a slice, as a signal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from microtome.interpret.cost import costs_of
from microtome.interpret.latency import latencies
from microtome.signals.interpretation import Interpretation, Scene

COLUMNS = ("flops", "other", "bytes", "energy", "seconds")


@dataclass(frozen=True)
class OperationCosts(Interpretation):
    """[1, operations, 5] float64: flops, other operations, bytes moved, picojoules, median seconds.

    Of one call with the rows of the slice; operations in the order of ``interpret.cost.costs``.
    """

    repeats: int = 5
    cost: ClassVar[float] = 7.0
    repeatable: ClassVar[bool] = False

    def read(self, scene: Scene) -> Tensor:
        """Count on shapes, then run and time."""
        taken = latencies(scene.graph, scene.inputs, self.repeats, scene.parameters)
        lines = [
            (cost.flops, cost.other, cost.bytes, cost.energy, taken.get(cost.node, 0.0))
            for cost in costs_of(scene.graph, scene.inputs)
        ]
        return torch.tensor([lines], dtype=torch.float64)


__all__ = ["COLUMNS", "OperationCosts"]
