"""Random features: a first layer that is drawn and never trained (Rahimi & Recht 2007)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RandomFeatures(nn.Module):
    """relu(x W) / sqrt(width) with fixed normal W; [n, inputs] -> [n, width].

    Args:
        inputs: features in.
        width: features out.
        seed: of W.
    """

    weight: Tensor

    def __init__(self, inputs: int, width: int, seed: int = 0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.register_buffer("weight", torch.randn(width, inputs, generator=draw).T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return torch.relu(x @ self.weight) / self.weight.shape[1] ** 0.5


__all__ = ["RandomFeatures"]
