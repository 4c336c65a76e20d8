"""Where one epoch of stochastic gradient descent ends on average, for each way of choosing batches (Beneventano 2023).

Sampling without replacement is full-batch descent plus a step on a regulariser that no other sampling takes: batches
that are not drawn twice are anticorrelated, and their noise meets the Hessians of the batches that are still to come.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, hessian, vmap

BatchLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(theta [p], inputs [b, ...], targets [b, ...]) -> the mean loss of a batch."""


def shuffled(k: int) -> Tensor:
    """[k!, k, k] every order of k batches, each once: weights of the batches at every step."""
    return torch.eye(k)[torch.tensor(list(itertools.permutations(range(k))))]


def drawn(k: int) -> Tensor:
    """[k^k, k, k] every sequence of k batches drawn with replacement."""
    return torch.eye(k)[torch.tensor(list(itertools.product(range(k), repeat=k)))]


def noisy(k: int, count: int, seed: int = 0) -> Tensor:
    """[2 count, k, k] Gaussian weights with the mean and covariance of one batch drawn, in pairs of opposite noise.

    Full-batch descent with noise injected that has the covariance of batch noise. The turned twin cancels what is odd
    in the noise, so that the mean needs few.
    """
    z = torch.randn(count, k, k, generator=torch.Generator().manual_seed(seed))
    noise = (z - z.mean(-1, keepdim=True)) / k**0.5
    return 1 / k + torch.cat([noise, -noise])


def displacements(
    loss: BatchLoss, theta: Tensor, xs: Tensor, ys: Tensor, weights: Tensor, rate: float
) -> Tensor:
    """[m, p] where each of m sequences of steps leads from theta.

    Args:
        loss: mean loss of one batch.
        theta: [p].
        xs: [k, b, ...] batches.
        ys: [k, b, ...].
        weights: [m, steps, k] of the batches at each step; a row of 1/k is a full-batch step.
        rate: learning rate.
    """

    def weighted(vector: Tensor, weight: Tensor) -> Tensor:
        return (vmap(loss, in_dims=(None, 0, 0))(vector, xs, ys) * weight).sum()

    slope = vmap(grad(weighted))
    at = theta.expand(len(weights), -1)
    for step in range(weights.shape[1]):
        at = at - rate * slope(at, weights[:, step].to(theta))
    return at - theta


def full_batch(loss: BatchLoss, theta: Tensor, xs: Tensor, ys: Tensor, rate: float, steps: int) -> Tensor:
    """[p] displacement of as many full-batch steps."""
    even = torch.full((1, steps, len(xs)), 1 / len(xs))
    return displacements(loss, theta, xs, ys, even, rate)[0]


def small_rate_step(loss: BatchLoss, theta: Tensor, xs: Tensor, ys: Tensor, rate: float) -> Tensor:
    """[p] the step on the regulariser when rate times Hessian is small: -(rate^2 / 4) grad sum_i |g_i - mean g|^2."""

    def spread(vector: Tensor) -> Tensor:
        g = vmap(grad(loss), in_dims=(None, 0, 0))(vector, xs, ys)
        return (g - g.mean(0)).square().sum()

    return -(rate**2) / 4 * grad(spread)(theta)


def regulariser_step(loss: BatchLoss, theta: Tensor, xs: Tensor, ys: Tensor, rate: float) -> Tensor:
    """[p] the step on the regulariser when rate times Hessian may be of order 1.

    With mean Hessian H, A = I - rate H, deviations D_i of the batches' Hessians and n_i(d) = g_i - mean g + D_i d of
    their gradients, and d_m the place after m full-batch steps, the average over orders adds, to second order in
    deviations,

        -(rate^2 / (k - 1)) sum_(m < j < k) A^(k-1-j) mean_i [D_i A^(j-1-m) n_i(d_m)].

    Batches drawn with replacement are independent, and this term is absent. Costs k dense Hessians [p, p].
    """
    k = len(xs)
    h = vmap(hessian(loss), in_dims=(None, 0, 0))(theta, xs, ys)
    g = vmap(grad(loss), in_dims=(None, 0, 0))(theta, xs, ys)
    mean, slope = h.mean(0), g.mean(0)
    deviations, noise = h - mean, g - slope
    total, place = torch.zeros_like(theta), torch.zeros_like(theta)
    for m in range(k - 1):
        carried = noise + deviations @ place  # n_i(d_m), then A^(j-1-m) of it [k, p]
        for j in range(m + 1, k):
            met = torch.einsum("kpq,kq->p", deviations, carried) / k
            for _ in range(k - 1 - j):
                met = met - rate * mean @ met
            total += met
            carried = carried - rate * carried @ mean
        place = place - rate * (slope + mean @ place)
    return -(rate**2) / (k - 1) * total


__all__ = [
    "BatchLoss",
    "displacements",
    "drawn",
    "full_batch",
    "noisy",
    "regulariser_step",
    "shuffled",
    "small_rate_step",
]
