"""Fully connected networks in the parametrisation whose gradient descent has a limit at infinite width (Jacot 2018)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NTKLinear(nn.Module):
    """W x / sqrt(inputs) + beta b with W and b of standard normal entries: [n, inputs] -> [n, outputs].

    The learning rate then need not shrink with width: each weight moves little, all together move the output.

    Args:
        inputs: features in.
        outputs: features out.
        beta: weight of the biases; None for none.
    """

    def __init__(self, inputs: int, outputs: int, beta: float | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.randn(outputs)) if beta is not None else None
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        y = F.linear(x, self.weight) / self.weight.shape[1] ** 0.5
        return y if self.bias is None or self.beta is None else y + self.beta * self.bias


class NTKMLP(nn.Module):
    """Layers of :class:`NTKLinear` with sqrt(2) ReLU, or another activation, between them.

    Args:
        widths: of inputs, hidden layers, outputs.
        activation: between layers; sqrt(2) ReLU keeps the mean square of activations.
        beta: see :class:`NTKLinear`.
    """

    def __init__(
        self,
        widths: Sequence[int],
        activation: Callable[[Tensor], Tensor] | None = None,
        beta: float | None = None,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(NTKLinear(a, b, beta) for a, b in pairwise(widths))
        self.activation = activation or (lambda x: 2**0.5 * F.relu(x))

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs] -> [n, outputs]."""
        for i, layer in enumerate(self.layers):
            x = layer(x if i == 0 else self.activation(x))
        return x


__all__ = ["NTKMLP", "NTKLinear"]
