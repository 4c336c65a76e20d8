"""Loss along directions that are fair to rescaled filters, for every member; paths of training (Li et al. 2018).

The instrument ``dynamics/loss_landscape`` asks the same of one network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from microtome.errors import UsageError
from microtome.population.curvature import extreme_curvatures
from microtome.population.population import Population
from microtome.population.program import Loss, State, cross_entropy

Scale = Literal["filter", "raw"]


def directions(population: Population, seed: int, scale: Scale = "filter") -> State:
    """A Gaussian direction for every member, the same draw for all, scaled to its weights.

    "filter": each filter (slice along the first dimension of a weight) is made as long as the member's own; "raw": it
    stays a standard normal. Biases and the scales of normalisation stay put.
    """
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for name, p in population.parameters.items():
        d = torch.randn(p.shape[1:], generator=draw).to(p).expand_as(p)
        if p.dim() < 3:  # members, and one dimension
            found[name] = torch.zeros_like(p)
        elif scale == "filter":
            flat, own = d.flatten(2), p.flatten(2)
            ratio = own.norm(dim=2, keepdim=True) / flat.norm(dim=2, keepdim=True).clamp(min=1e-30)
            found[name] = (flat * ratio).view_as(p)
        else:
            found[name] = d
    return found


def moved(population: Population, direction: State, step: float) -> Population:
    """A copy of the population, that far along a direction."""
    made = population.copy()
    for name, value in direction.items():
        made.parameters[name] += step * value
    return made


def line(
    population: Population,
    direction: State,
    steps: Sequence[float],
    inputs: Tensor,
    targets: Tensor,
    *,
    loss: Loss = cross_entropy,
) -> Tensor:
    """[N, t] loss in eval mode at each step along a direction."""
    found = []
    for step in steps:
        outputs = moved(population, direction, step).predict(inputs)
        found.append(torch.stack([loss(out, targets) for out in outputs]))
    return torch.stack(found, 1)


def rescaled(population: Population, before: str, after: str, factor: Tensor) -> Population:
    """Copies that compute the same: layer ``before`` times a factor, the weights of ``after`` divided by it.

    Between the two layers stands a ReLU or nothing. ``factor`` > 0 is one for the layer, or one a unit [width].

    Raises:
        UsageError: MT471 for layers that are not there.
    """
    wanted = (f"{before}.weight", f"{after}.weight")
    if missing := [name for name in wanted if name not in population.parameters]:
        raise UsageError(
            "MT471", f"there is no '{missing[0]}' to rescale", fix=", ".join(population.parameters)
        )
    made = population.copy()
    own = made.parameters
    own[wanted[0]] *= factor.reshape(-1, *[1] * (own[wanted[0]].dim() - 2))
    if f"{before}.bias" in own:
        own[f"{before}.bias"] *= factor
    own[wanted[1]] /= factor.reshape(-1, *[1] * (own[wanted[1]].dim() - 3))
    return made


def non_convexity(lines: Tensor) -> Tensor:
    """[N] how much of a line's bending is downwards: sum of negative second differences over that of their sizes.

    Of losses [N, t] at equal steps: 0 convex, 1 concave; 0 for a straight line.
    """
    bends = lines.double().diff(n=2, dim=1)
    return (-bends).clamp(min=0).sum(1) / bends.abs().sum(1).clamp(min=1e-300)


def path_share(path: Tensor, components: int = 2) -> Tensor:
    """[N] share of the variance of a path [t, N, p], seen from its end, in its first principal components."""
    moves = (path[:-1] - path[-1]).double().transpose(0, 1)
    power = torch.linalg.svdvals(moves).square()
    return power[:, :components].sum(1) / power.sum(1).clamp(min=1e-300)


def random_walk_share(components: int = 2) -> float:
    """What :func:`path_share` is for a long random walk in many dimensions: sum of 8 / (pi (2k - 1))^2.

    The Karhunen-Loeve spectrum of Brownian motion from its end: a walk without a plan looks low-dimensional too.
    """
    return sum(8 / (math.pi * (2 * k - 1)) ** 2 for k in range(1, components + 1))


__all__ = [
    "Scale",
    "directions",
    "extreme_curvatures",
    "line",
    "moved",
    "non_convexity",
    "path_share",
    "random_walk_share",
    "rescaled",
]
