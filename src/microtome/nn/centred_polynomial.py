"""A network whose laziness is one number, and which groks on purpose (Kumar, Bordelon, Gershman & Pehlevan 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CentredPolynomial(nn.Module):
    """alpha (g(w) - g(w0)), g the mean over units of h + epsilon h^2 / 2, h = w x / sqrt(inputs), w0 the first weights.

    A large ``alpha`` lets the answers move while weights hardly do (lazy), a small one makes features move (rich). A
    small ``epsilon`` makes the first kernel nearly linear, and so misaligned with targets that are even in x. For a
    descent of equal speed in the answers take rates proportional to 1 / alpha^2.
    """

    first: Tensor
    alpha: Tensor

    def __init__(self, inputs: int, width: int, alpha: float = 1.0, epsilon: float = 0.25) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, inputs))
        self.register_buffer("first", self.weight.detach().clone())
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs] -> [n, 1]."""

        def mean(weight: Tensor) -> Tensor:
            h = x @ weight.T / x.shape[-1] ** 0.5
            return (h + self.epsilon / 2 * h.square()).mean(-1, keepdim=True)

        return self.alpha * (mean(self.weight) - mean(self.first))


__all__ = ["CentredPolynomial"]
