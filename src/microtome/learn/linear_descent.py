"""Gradient descent on least squares after any number of steps at once, and how many it needs: exact, by one SVD.

For the loss |features W - targets|^2 / (2 n) each singular direction of the features, of value s, has
1 - (1 - rate s^2 / n)^t of its way behind it after t steps; what the condition number says about speed is here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

TINY = 1e-6
"""Singular values below this share of the largest count as 0."""


class LinearDescent:
    """Least squares of [n, w] features, ready for any number of steps.

    Attributes:
        values: [r] singular values that count, largest first.
        top: largest eigenvalue of the Hessian, s_1^2 / n: rates below 2 / top converge.
        condition: ratio of the largest to the smallest eigenvalue that counts.

    Args:
        features: [n, w]; float64 for many steps.
        targets: [n, k].
        start: [w, k] first weights; None for 0.
    """

    def __init__(self, features: Tensor, targets: Tensor, start: Tensor | None = None) -> None:
        self.n = len(features)
        self.start = torch.zeros(features.shape[1], targets.shape[1]).to(features) if start is None else start
        u, s, vh = torch.linalg.svd(features, full_matrices=False)
        kept = s > TINY * s[0]
        self.values, self.right = s[kept], vh[kept].T
        residual = targets - features @ self.start
        self.ahead = u[:, kept].T @ residual  # [r, k]
        self.beyond = float((residual.square().sum() - self.ahead.square().sum()).clamp(min=0))
        self.top = float(s[0].square()) / self.n
        self.condition = float((self.values[0] / self.values[-1]).square())

    def _left(self, rate: float, steps: float) -> Tensor:
        """[r] of each direction's way that is still ahead; ``steps`` may be infinite."""
        factor = 1 - rate * self.values.square() / self.n
        return torch.zeros_like(factor) if math.isinf(steps) else factor**steps

    def weights(self, rate: float, steps: Sequence[float]) -> Tensor:
        """[t, w, k] after each of some numbers of full-batch steps; infinitely many give the pseudo-inverse's."""
        gone = torch.stack([(1 - self._left(rate, t)) / self.values for t in steps])
        return self.start + torch.einsum("wr,tr,rk->twk", self.right, gone, self.ahead)

    def loss(self, rate: float, steps: float) -> float:
        """The training loss then: |features W - targets|^2 / (2 n)."""
        left = (self._left(rate, steps)[:, None] * self.ahead).square().sum()
        return (float(left) + self.beyond) / (2 * self.n)

    def steps_needed(self, rate: float, share: float) -> float:
        """Fewest steps, within 1%, until the loss that can be removed has fallen to a share of the first."""
        above = self.loss(rate, math.inf)
        goal = above + share * (self.loss(rate, 0) - above)
        low, high = 0.0, 1.0
        while self.loss(rate, high) > goal:
            low, high = high, 2 * high
            if high > 1e18:
                return math.inf
        while high - low > 0.01 * high and high - low > 1:
            middle = (low + high) / 2
            low, high = (low, middle) if self.loss(rate, round(middle)) <= goal else (middle, high)
        return round(high)


def peak_height(widths: Sequence[int], errors: Tensor, at: int, near: float = 1.3) -> Tensor:
    """[...] how far errors rise around a width above the lowest of both sides; 0 or less where there is no peak.

    The largest error within a factor ``near`` of ``at``, less the larger of the smallest errors before and after: an
    error that only falls, or only rises, with width has no peak.

    Args:
        widths: [w], rising.
        errors: [..., w].
        at: where the peak is looked for.
    """
    place = torch.tensor([float(w) for w in widths])
    around = (place >= at / near) & (place <= at * near)
    before, after = place < at / near, place > at * near
    valley = torch.maximum(errors[..., before].amin(-1), errors[..., after].amin(-1))
    return errors[..., around].amax(-1) - valley


__all__ = ["LinearDescent", "peak_height"]
