"""Networks seen as functions of few inputs, with the pieces that make them simple or not (Teney et al. 2024)."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.errors import UsageError, nearest

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "sin": torch.sin,
    "gaussian": lambda x: torch.exp(-x.square() / 2),
}


def activation_of(name: str) -> Callable[[Tensor], Tensor]:
    """The activation of this name.

    Raises:
        UsageError: MT470 for an unknown one.
    """
    if name not in ACTIVATIONS:
        raise UsageError(
            "MT470",
            f"no activation is called '{name}'",
            fix=nearest(name, ACTIVATIONS) or ", ".join(ACTIVATIONS),
        )
    return ACTIVATIONS[name]


class FunctionMLP(nn.Module):
    """[n, inputs] -> [n]: ``depth`` hidden layers, weights uniform in a box, so that functions can be drawn.

    Weights and biases are uniform within +-sqrt(6 / (fan-in + fan-out)) (Glorot & Bengio 2010); larger boxes by
    :meth:`microtome.population.Population.scale`.

    Args:
        inputs: numbers a point.
        width: units a layer.
        depth: hidden layers.
        activation: one of :data:`ACTIVATIONS`.
        residual: add what came in to each hidden layer after the first.
        norm: layer norm before each activation, without learnt scales.
    """

    def __init__(
        self,
        *,
        inputs: int = 2,
        width: int = 64,
        depth: int = 3,
        activation: str = "relu",
        residual: bool = False,
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.activation, self.residual, self.norm = activation_of(activation), residual, norm
        sizes = [inputs, *[width] * depth]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.last = nn.Linear(width, 1)
        for layer in (*self.hidden, self.last):
            bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.uniform_(layer.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs] -> [n]."""
        for i, layer in enumerate(self.hidden):
            z = layer(x)
            if self.norm:
                z = F.layer_norm(z, z.shape[-1:])
            z = self.activation(z)
            x = x + z if self.residual and i else z
        return self.last(x)[..., 0]


__all__ = ["ACTIVATIONS", "FunctionMLP", "activation_of"]
