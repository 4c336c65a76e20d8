"""One small network of each family a study has to hold for; plain PyTorch, sizes by arguments."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(inputs: int = 64, width: int = 128, outputs: int = 10) -> nn.Module:
    """[n, inputs] -> [n, outputs]."""
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, outputs)
    )


class Residual(nn.Module):
    """Two convolutions around which the input goes on, as in ResNet."""

    def __init__(self, inside: int, outside: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside)
        self.conv2, self.norm2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside)
        same = stride == 1 and inside == outside
        self.short = nn.Identity() if same else nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[n, inside, h, w] -> [n, outside, h / stride, w / stride]."""
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.short(x))


class ResNet(nn.Module):
    """A stem, four residual blocks, the mean over positions, a head."""

    def __init__(self, width: int = 16, outputs: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(
            Residual(width, width), Residual(width, 2 * width, 2), Residual(2 * width, 2 * width),
            Residual(2 * width, 4 * width, 2),
        )  # fmt: skip
        self.head = nn.Linear(4 * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 3, h, w] -> [n, outputs]."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Varied(nn.Module):
    """Grouped, depthwise, dilated and strided convolutions, a pool, a gate over channels."""

    def __init__(self, width: int = 16, outputs: int = 10) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(4, width, 3, padding=1, groups=4)
        self.depthwise = nn.Conv2d(width, width, 3, padding=2, dilation=2, groups=width)
        self.point, self.norm = nn.Conv2d(width, 2 * width, 1, 2), nn.BatchNorm2d(2 * width)
        self.gate, self.head = nn.Linear(2 * width, 2 * width), nn.Linear(2 * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 4, h, w] -> [n, outputs]."""
        x = F.max_pool2d(F.silu(self.grouped(x)), 2)
        x = F.leaky_relu(self.norm(self.point(F.hardswish(self.depthwise(x)))), 0.1)
        x = x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
        return self.head(x.amax((2, 3)))


class UNet(nn.Module):
    """Two levels down and up, with a wire across at each."""

    def __init__(self, width: int = 8, outputs: int = 3) -> None:
        super().__init__()

        def double(inside: int, outside: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(inside, outside, 3, padding=1), nn.GroupNorm(2, outside), nn.ReLU(),
                nn.Conv2d(outside, outside, 3, padding=1), nn.ReLU(),
            )  # fmt: skip

        self.down1, self.down2, self.middle = (
            double(3, width),
            double(width, 2 * width),
            double(2 * width, 4 * width),
        )
        self.up2, self.up1 = (
            nn.ConvTranspose2d(4 * width, 2 * width, 2, 2),
            nn.ConvTranspose2d(2 * width, width, 2, 2),
        )
        self.left2, self.left1 = double(4 * width, 2 * width), double(2 * width, width)
        self.head = nn.Conv2d(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 3, h, w] -> [n, outputs, h, w]."""
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        y = self.middle(F.max_pool2d(second, 2))
        y = self.left2(torch.cat([second, self.up2(y)], 1))
        return self.head(self.left1(torch.cat([first, self.up1(y)], 1)))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.heads, self.causal = heads, causal

    def forward(self, x: Tensor) -> Tensor:
        """[n, t, width] -> [n, t, width]."""
        n, t, c = x.shape
        parts = self.qkv(self.norm1(x)).chunk(3, -1)
        q, k, v = (part.view(n, t, self.heads, c // self.heads).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(y.transpose(1, 2).reshape(n, t, c))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Patches of 4 x 4 pixels, a class token, two blocks."""

    def __init__(self, width: int = 32, size: int = 16, outputs: int = 10) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.1)
        self.position = nn.Parameter(torch.randn(1, (size // 4) ** 2 + 1, width) * 0.1)
        self.blocks = nn.Sequential(Block(width, 4), Block(width, 4))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 3, size, size] -> [n, outputs]."""
        y = self.patch(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(x.shape[0], -1, -1), y], 1) + self.position
        return self.head(self.norm(self.blocks(y))[:, 0])


class GPT(nn.Module):
    """Embeddings, two causal blocks, logits of the next token."""

    def __init__(self, width: int = 32, vocabulary: int = 50, length: int = 32) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(Block(width, 4, True), Block(width, 4, True))
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """[n, t] -> [n, t, vocabulary]."""
        return self.head(
            self.blocks(self.token(ids) + self.place(torch.arange(ids.shape[1], device=ids.device)))
        )
