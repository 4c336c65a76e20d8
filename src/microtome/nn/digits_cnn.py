"""The reference network: small, residual, and written the way people write networks.

On purpose it mixes what analysis tools stumble over: activations as modules and as functions, one activation
module called twice, residual additions, batch normalisation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """Two 3 x 3 convolutions around an identity; ``relu`` is one module, called twice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, h, w] -> [n, c, h, w]."""
        y = self.relu(self.norm1(self.conv1(x)))
        return self.relu(x + self.norm2(self.conv2(y)))


class DigitsCNN(nn.Module):
    """A CNN of about 37 000 parameters for images of 8 x 8 pixels and ten classes."""

    def __init__(self, classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.block1 = Residual(width)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.down_norm = nn.BatchNorm2d(2 * width)
        self.block2 = Residual(2 * width)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.fc = nn.Linear(8 * width, 4 * width)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 1, 8, 8] -> logits [n, classes]."""
        x = F.relu(self.norm(self.stem(x)))  # (n, w, 8, 8)
        x = self.block1(x)
        x = F.relu(self.down_norm(self.down(x)))  # (n, 2w, 4, 4)
        x = self.block2(x)
        x = torch.flatten(self.pool(x), 1)  # (n, 8w)
        return self.head(F.relu(self.fc(x)))
