"""How trained parameters depend on where training started (Belrose & Scherlis 2024)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

BULK = 0.01
"""A singular value within this of 1 belongs to the bulk."""


def training_jacobian(
    loss: Callable[[Tensor], Tensor], start: Tensor, *, rate: float, steps: int, at_once: int | None = None
) -> tuple[Tensor, Tensor]:
    """(end [p], J [p, p]): where full-batch descent leads from ``start``, and the derivative of that by the start.

    J <- (I - rate H) J at every step, exactly, by Hessian-vector products with the columns of J: p of them a step.

    Args:
        loss: of a vector of parameters, on all data.
        start: [p].
        rate: learning rate.
        steps: updates.
        at_once: columns taken together; fewer take less memory.
    """
    slope = grad(loss)
    theta, rows = (
        start,
        torch.eye(len(start), dtype=start.dtype, device=start.device),
    )  # rows are columns of J

    for _ in range(steps):

        def product(direction: Tensor, at: Tensor = theta) -> Tensor:
            change: Tensor = jvp(slope, (at,), (direction,))[1]
            return change

        rows = rows - rate * vmap(product, chunk_size=at_once)(rows)
        theta = theta - rate * slope(theta)
    return theta, rows.T


@dataclass(frozen=True)
class Regions:
    """Singular vectors of a training Jacobian, J = left diag(values) right^T, by what training does to them.

    Attributes:
        values: [p] largest first.
        left: [p, p] columns: changes of trained parameters.
        right: [p, p] columns: changes of first parameters.
        bulk: [p] whether a value is within :data:`BULK` of 1; chaotic ones lie above, stable ones below.
    """

    values: Tensor
    left: Tensor
    right: Tensor
    bulk: Tensor

    @property
    def chaotic(self) -> Tensor:
        """[p] above the bulk."""
        return self.values > 1 + BULK

    @property
    def stable(self) -> Tensor:
        """[p] below the bulk."""
        return self.values < 1 - BULK

    def alignment(self) -> Tensor:
        """[p] cosine of each left vector with its right one: 1 where training passes a change on as it is."""
        return (self.left * self.right).sum(0)


def regions(jacobian: Tensor) -> Regions:
    """Decompose a training Jacobian [p, p]."""
    left, values, right = torch.linalg.svd(jacobian)
    return Regions(values, left, right.T, (values - 1).abs() <= BULK)


def overlap(one: Tensor, two: Tensor) -> float:
    """How much of a subspace lies within another one beyond chance: 1 for all of it, 0 as much as of a random one.

    With orthonormal columns [p, a] and [p, b] the share |two^T one|^2 / a is b / p for random subspaces; that is
    taken off and the rest scaled to 1. Not symmetric: a large subspace does not lie within a small one.
    """
    p, a, b = one.shape[0], one.shape[1], two.shape[1]
    if not a or b == p:
        return 0.0
    chance = b / p
    return (float((two.T @ one).square().sum()) / a - chance) / (1 - chance)


__all__ = ["BULK", "Regions", "overlap", "regions", "training_jacobian"]
