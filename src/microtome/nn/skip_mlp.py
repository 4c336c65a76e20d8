"""A deep fully connected network with or without skips around its layers; the parameters are the same."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SkipMLP(nn.Module):
    """``depth`` hidden layers h <- h + relu(W norm(h)), or without skips h <- relu(W norm(h)).

    norm is layer normalisation without scales, so that both kinds carry signals and gradients to any depth.

    Args:
        inputs: features in; outputs: numbers out.
        width: of the hidden layers.
        depth: hidden layers after the first, linear one.
        skip: whether there are skips.
    """

    def __init__(self, inputs: int, width: int, outputs: int, depth: int, *, skip: bool) -> None:
        super().__init__()
        self.skip = skip
        self.stem = nn.Linear(inputs, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        for layer in self.hidden:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # type: ignore[arg-type]
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs] -> [n, outputs]."""
        h = self.stem(x)
        for layer in self.hidden:
            y = layer(_normed(h)).relu()
            h = h + y if self.skip else y
        return self.head(_normed(h))


def _normed(h: Tensor) -> Tensor:
    return F.layer_norm(h, h.shape[-1:])


__all__ = ["SkipMLP"]
