"""Programs drawn at random from steps that keep the examples of a batch apart and steps that let them meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Step = Callable[[Tensor], Tensor]
SHAPE = (4, 6)

KEEP: Sequence[Step] = (
    torch.tanh,
    lambda x: x.transpose(1, 2).reshape(x.shape),
    lambda x: x.softmax(1),
    lambda x: x - x.mean(2, keepdim=True),
    lambda x: x.cumsum(1),
    lambda x: x.flip(2),
    lambda x: x.roll(2, 1),
    lambda x: x.sort(2).values,
    lambda x: x.gather(1, x.argsort(1)),
    lambda x: torch.softmax(x @ x.transpose(1, 2), -1) @ x,
    lambda x: F.layer_norm(x, (6,)),
    lambda x: F.layer_norm(x.reshape(-1, 6), (6,)).reshape(x.shape),
    lambda x: F.avg_pool1d(x, 3, 1, 1),
    lambda x: x.permute(1, 0, 2).cumsum(0).permute(1, 0, 2),
    lambda x: torch.cat([x, 2 * x], 0)[: x.shape[0]] + x,
    lambda x: torch.cat([x, -x], 1).relu()[:, ::2],
    lambda x: torch.stack([x, x.tanh()], 0).mean(0),
    lambda x: x.masked_fill(x < 0, 0.1),
    lambda x: x / (1 + x.abs().amax((1, 2), keepdim=True)),
    lambda x: torch.einsum("nij,nkj->nik", x, x)[..., [0, 1, 2, 3, 0, 1]],
)
"""[n, 4, 6] -> [n, 4, 6], example by example."""

MEET: Sequence[Step] = (
    lambda x: x.softmax(0),
    lambda x: x - x.mean(0),
    lambda x: x.roll(1, 0),
    lambda x: x.cumsum(0),
    lambda x: x.sort(0).values,
    lambda x: x + x[:1],
    lambda x: x.reshape(4, -1, 6).transpose(0, 1),
    lambda x: x / x.abs().max(),
    lambda x: F.batch_norm(x, None, None, training=True),
    lambda x: torch.einsum("nij,mij->nm", x, x).softmax(1).matmul(x.flatten(1)).reshape(x.shape),
    lambda x: x.permute(1, 2, 0).flip(2).permute(2, 0, 1),
    lambda x: x[(torch.arange(x.shape[0]) + 1) % x.shape[0]],
)
"""The same shape, with other examples in it."""


class Program(nn.Module):
    """Steps one after another, between them sums with what went in."""

    def __init__(self, steps: Sequence[Step], around: Sequence[bool]) -> None:
        super().__init__()
        self.steps, self.around = steps, around

    def forward(self, x: Tensor) -> Tensor:
        """[n, 4, 6] -> [n, 4, 6]."""
        for step, around in zip(self.steps, self.around, strict=True):
            x = x + step(x) if around else step(x)
        return x


def drawn(seed: int, length: int = 5, meeting: float = 0.12) -> tuple[Program, int]:
    """A program and how many of its steps let examples meet."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(length, 3, generator=generator).tolist()
    steps, around, count = [], [], 0
    for kind, which, sum_ in uniform:
        menu = MEET if kind < meeting else KEEP
        count += menu is MEET
        steps.append(menu[int(which * len(menu))])
        around.append(sum_ < 0.4)
    return Program(steps, around), count
