"""Pictures moved by a few pixels at random while training: augmentation as a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RandomShift(nn.Module):
    """Move each picture by up to ``most`` pixels each way; what comes in at the edge is the edge repeated.

    Active in training mode only, like dropout. [n, c, h, w] -> the same.
    """

    def __init__(self, most: int = 1) -> None:
        super().__init__()
        self.most = most

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, h, w], moved while training."""
        if not self.training:
            return x
        for dim in (2, 3):
            size = x.shape[dim]
            by = (torch.rand(len(x), 1, device=x.device) * (2 * self.most + 1)).floor().long() - self.most
            index = (torch.arange(size, device=x.device) + by).clamp(0, size - 1)  # [n, size]
            index = index[:, None, :, None] if dim == 2 else index[:, None, None, :]
            x = x.gather(dim, index.expand(x.shape))
        return x


__all__ = ["RandomShift"]
