"""Small networks of every family the symbolic engine promises to capture, with example inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.nn.digits_cnn import DigitsCNN


class Block(nn.Module):
    """A pre-norm transformer block written in plain PyTorch."""

    def __init__(self, width: int = 8, heads: int = 2, causal: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.heads, self.causal = heads, causal

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (
            y.view(b, t, self.heads, c // self.heads).transpose(1, 2)
            for y in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 5, 8))
        self.block, self.norm, self.head = Block(), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patch(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(x.shape[0], -1, -1), y], 1) + self.position
        return self.head(self.norm(self.block(y))[:, 0])


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(11, 8), nn.Embedding(6, 8)
        self.block, self.head = Block(causal=True), nn.Linear(8, 11, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids) + self.place(torch.arange(ids.shape[1], device=ids.device))
        return self.head(self.block(x))


class Convs(nn.Module):
    """Grouped, depthwise, dilated, strided and transposed convolutions, pools, group-norm, gates."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(4, 8, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8, bias=False)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2)
        self.norm, self.group = nn.BatchNorm2d(8), nn.GroupNorm(2, 4)
        self.squeeze = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.silu(self.norm(self.grouped(x))), 2)
        x = F.leaky_relu(self.up(F.hardswish(self.depthwise(x))), 0.1)
        x = F.avg_pool2d(self.group(x), 2)
        gate = torch.sigmoid(self.squeeze(x.mean((2, 3))))
        return (x * gate[:, :, None, None]).amax((2, 3))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cell, self.head = kind(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))


def smooth() -> nn.Module:
    parts: list[nn.Module] = []
    for activation in (nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.ELU(), nn.Softplus(), nn.SiLU(), nn.Mish()):
        parts += [nn.Linear(6, 6), activation]
    return nn.Sequential(*parts, nn.Linear(6, 3))


def _settle(model: nn.Module, *args: Any) -> nn.Module:
    """Give batch-norm statistics that fit, as a trained network has."""
    with torch.no_grad():
        model.train()(*args)
    return model.eval()


def _digits() -> tuple[nn.Module, tuple[Any, ...]]:
    return _settle(DigitsCNN(width=4), torch.rand(64, 1, 8, 8)), (torch.rand(3, 1, 8, 8),)


torch.set_num_threads(1)  # small operations: threads only wait for each other

MODELS: dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...]]]] = {
    "mlp": lambda: (mlp(), (torch.rand(3, 5),)),
    "smooth": lambda: (smooth(), (torch.randn(3, 6),)),
    "digits_cnn": _digits,
    "convs": lambda: (_settle(Convs(), torch.randn(64, 4, 8, 8)), (torch.randn(3, 4, 8, 8),)),
    "block": lambda: (Block(), (torch.randn(3, 4, 8),)),
    "vit": lambda: (ViT(), (torch.rand(3, 1, 8, 8),)),
    "gpt": lambda: (GPT(), (torch.randint(0, 11, (3, 5)),)),
    "lstm": lambda: (Recurrent(nn.LSTM), (torch.randn(3, 4, 3),)),
    "gru": lambda: (Recurrent(nn.GRU), (torch.randn(3, 4, 3),)),
    "encoder": lambda: (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (torch.randn(3, 4, 8),)),
}


def build(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[nn.Module, tuple[Any, ...]]:
    """A model in eval mode and example arguments with a batch of 3."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, args = MODELS[name]()
    return model.eval().to(dtype), tuple(a.to(dtype) if a.is_floating_point() else a for a in args)
