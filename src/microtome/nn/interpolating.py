"""A two-layer ReLU network of 2n + d weights that fits any n examples exactly (Zhang et al. 2017, theorem 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from microtome.errors import UsageError


class Interpolating(nn.Module):
    """f(x) = sum_j w_j max(<a, x> - b_j, 0), with one direction a for all n hidden units.

    Along a random direction a all examples have places of their own, z_1 < ... < z_n. With b_1 < z_1 and b_j between
    z_{j-1} and z_j the matrix max(z_i - b_j, 0) is lower triangular with a positive diagonal, so w exists for any
    answers.
    It is found by forward substitution in float64: on the segment from z_i on, the slope is what is still missing.

    Attributes:
        direction: a [d].
        thresholds: b [n].
        weights: w [n].
    """

    direction: Tensor
    thresholds: Tensor
    weights: Tensor

    def __init__(self, x: Tensor, y: Tensor, *, seed: int = 0, tries: int = 200) -> None:
        """Fit y [n] at x [n, d]; examples all different, y [n] real numbers.

        Args:
            x: examples.
            y: what to answer.
            seed: of the directions; of ``tries``, the one that leaves the smallest gap between places largest is taken.
            tries: directions drawn.

        Raises:
            UsageError: MT497 when two examples are the same but their answers are not, or have one place.
        """
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        x, y = x.flatten(1).double(), y.double()
        x, index = x.unique(dim=0, return_inverse=True)
        answer = torch.zeros(len(x), dtype=torch.float64).scatter(0, index, y)
        if not torch.equal(answer[index], y):
            raise UsageError("MT497", "one example has two answers", fix="leave out examples that come twice")
        directions = torch.randn(tries, x.shape[1], generator=draw, dtype=torch.float64)
        places = x @ directions.T  # [n, tries]
        gaps = places.sort(0).values.diff(dim=0).amin(0) if len(x) > 1 else torch.ones(tries)
        best = int((gaps / directions.norm(dim=1)).argmax())
        z, order = places[:, best].sort()
        if len(z) > 1 and float(gaps[best]) <= 0:
            raise UsageError("MT497", "two examples have one place", fix="give another seed")
        answer = answer[order]
        before = torch.cat([z[:1] - 1, (z[1:] + z[:-1]) / 2])
        weights = torch.zeros_like(z)
        for i in range(len(z)):  # sequential by nature: a substitution
            missing = answer[i] - (weights[:i] * (z[i] - before[:i])).sum()
            weights[i] = missing / (z[i] - before[i])
        self.register_buffer("direction", directions[best])
        self.register_buffer("thresholds", before)
        self.register_buffer("weights", weights)

    def forward(self, x: Tensor) -> Tensor:
        """[n, ...] -> [n]."""
        place = x.flatten(1).to(self.direction) @ self.direction
        return torch.relu(place[:, None] - self.thresholds) @ self.weights

    def count(self) -> int:
        """Weights: 2n + d."""
        return self.direction.numel() + self.thresholds.numel() + self.weights.numel()


__all__ = ["Interpolating"]
