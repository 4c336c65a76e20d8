"""Kernels of infinite width as a signal: what the architecture says of two inputs, beside what the network does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from microtome.errors import Refusal
from microtome.interpret.kernel_domain import Parametrization
from microtome.interpret.kernels import infinite_width_kernels
from microtome.signals.expression import Constant
from microtome.signals.interpretation import Interpretation, Scene


@dataclass(frozen=True)
class InfiniteWidthKernel(Interpretation):
    """[n, m] float64 the kernel between each example and anchors [m, ...], by the variances of the network's weights.

    ``kind`` is "nngp" (covariance of an answer) or "ntk" (inner products of gradients, in torch's parametrisation if
    not said otherwise). An example's row depends on nothing else in its slice.
    """

    anchors: Constant
    kind: Literal["nngp", "ntk"] = "ntk"
    parametrization: Parametrization = "standard"
    cost = 20.0
    memory = 16.0

    def read(self, scene: Scene) -> Tensor:
        """Of the examples and the anchors together; the block between them."""
        (place, *more) = scene.places
        if more or place.kind != "input" or len(scene.graph.inputs) > 1 or not scene.batch.divisible:
            raise Refusal("kernels of infinite width are of networks with one real-valued input")
        if scene.parameters:
            raise Refusal("kernels of infinite width are read off the network's own weights")
        x = scene.places[place]
        both = torch.cat([x, self.anchors.value.to(x)])
        found = infinite_width_kernels(scene.graph, {place: both}, parametrization=self.parametrization)
        return (found.nngp if self.kind == "nngp" else found.ntk)[: len(x), len(x) :]


__all__ = ["InfiniteWidthKernel"]
