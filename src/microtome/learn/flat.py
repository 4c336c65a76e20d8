"""A network as a function of one vector of parameters, for what is best said in vectors: Jacobians, displacements."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


def flat(model: nn.Module) -> tuple[Tensor, Callable[[Tensor, Any], Any]]:
    """(vector [p], call): ``call(vector, inputs)`` is what the network answers with these parameters.

    Parameters come in the order of ``named_parameters()``; buffers are those of the model.
    """
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    sizes = [prod(shape) for shape in shapes]
    vector = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def call(theta: Tensor, inputs: Any) -> Any:
        parts = (part.view(shape) for part, shape in zip(theta.split(sizes), shapes, strict=True))
        return functional_call(model, dict(zip(names, parts, strict=True)), (inputs,))

    return vector, call


__all__ = ["flat"]
