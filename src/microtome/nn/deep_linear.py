"""Deep linear networks and their first weights (Saxe, McClelland & Ganguli 2014).

The map is linear, the dynamics of learning are not: each added layer changes how the weights move.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from microtome.errors import UsageError


class DeepLinear(nn.Sequential):
    """y = W_L ... W_1 x without biases: widths (n_0, ..., n_L) of inputs, hidden layers and outputs."""

    def __init__(self, widths: Sequence[int]) -> None:
        if len(widths) < 2:
            raise UsageError("MT460", "a network needs inputs and outputs", fix="give at least two widths")
        super().__init__(*(nn.Linear(a, b, bias=False) for a, b in pairwise(widths)))

    def product(self) -> Tensor:
        """[n_L, n_0] the one matrix that all layers come to."""
        return total([layer.weight for layer in self if isinstance(layer, nn.Linear)])


def total(weights: Sequence[Tensor]) -> Tensor:
    """W_L ... W_1 of weights given from the first layer on, each [..., out, in]; a stack of networks works too."""
    found = weights[0]
    for weight in weights[1:]:
        found = weight @ found
    return found


def _weights(model: nn.Module) -> list[Tensor]:
    return [layer.weight.data for layer in model.modules() if isinstance(layer, nn.Linear)]


def orthogonal_(model: nn.Module, gain: float = 1.0) -> nn.Module:
    """Every linear layer a random orthogonal matrix times ``gain``, in place."""
    for weight in _weights(model):
        nn.init.orthogonal_(weight, gain)
    return model


def gaussian_(model: nn.Module, gain: float = 1.0) -> nn.Module:
    """Every linear layer of independent normal entries of standard deviation gain / sqrt(inputs), in place."""
    for weight in _weights(model):
        nn.init.normal_(weight, std=gain / weight.shape[1] ** 0.5)
    return model


def pretrained_(model: nn.Module, gain: float = 0.1) -> nn.Module:
    """What greedy unsupervised pretraining leaves on white inputs, in place.

    Gradient descent of a tied linear autoencoder, |x - W^T W x|^2, keeps the singular vectors of its start W = U S V^T
    and moves every singular value to 1: it ends at the polar factor U V^T. So each layer is small Gaussian weights,
    then their polar factor, and its outputs are white inputs of the next. Layers must not widen.
    """
    for weight in _weights(gaussian_(model, gain)):
        u, _, vh = torch.linalg.svd(weight, full_matrices=False)
        weight.copy_(u @ vh)
    return model


def aligned_(model: DeepLinear, left: Tensor, right: Tensor, strength: float | Tensor) -> DeepLinear:
    """Weights whose product is left diag(strength) right^T, balanced over the layers, in place.

    W_l = R_l diag(strength^(1/L)) R_(l-1)^T with R_0 = ``right`` [n_0, m], R_L = ``left`` [n_L, m] and random
    orthonormal columns in between: then the modes do not mix, and each follows its own equation.
    """
    weights = _weights(model)
    modes = left.shape[1]
    share = torch.as_tensor(strength, dtype=left.dtype).expand(modes) ** (1 / len(weights))
    before = right
    for i, weight in enumerate(weights):
        after = (
            left if i == len(weights) - 1 else nn.init.orthogonal_(torch.empty(len(weight), modes).to(left))
        )
        weight.copy_((after * share) @ before.T)
        before = after
    return model


__all__ = ["DeepLinear", "aligned_", "gaussian_", "orthogonal_", "pretrained_", "total"]
