"""One hidden layer over two one-hot numbers: the network in which modular arithmetic can be solved by hand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def one_hot(x: Tensor, p: int) -> Tensor:
    """[...] whole numbers -> [..., p] truth values; torch's own looks at the values, so it cannot be batched."""
    return x[..., None] == torch.arange(p, device=x.device)


class ModularMLP(nn.Module):
    """w^T act(u_x + v_y), without biases: [n, 2] whole numbers -> [n, p].

    With act = square, a network of single-frequency units solves x + y mod p (Gromov 2023; Morwani et al. 2024).

    Args:
        p: numbers.
        width: hidden units.
        activation: of the hidden units; the default is the square.
        scale: deviation of u and v at the start, and of w times sqrt(width).

    Attributes:
        u: [p, width] first weights of the first number; ``v`` of the second.
        w: [p, width] second weights.
    """

    def __init__(
        self,
        p: int,
        width: int,
        activation: Callable[[Tensor], Tensor] = torch.square,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.p, self.activation = p, activation
        self.u = nn.Parameter(scale * torch.randn(p, width) / (2 * p) ** 0.5)
        self.v = nn.Parameter(scale * torch.randn(p, width) / (2 * p) ** 0.5)
        self.w = nn.Parameter(scale * torch.randn(p, width) / width**0.5)

    def hidden(self, x: Tensor) -> Tensor:
        """[n, 2] -> [n, width] what the hidden units say."""
        one, two = one_hot(x, self.p).to(self.u.dtype).unbind(1)
        return self.activation(torch.cat([one, two], 1) @ torch.cat([self.u, self.v]))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.hidden(x) @ self.w.T


__all__ = ["ModularMLP", "one_hot"]
