"""How far the gradients of batches point apart, and away from the gradient of all data (Liu et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from microtome.population.population import Population
from microtome.population.program import Loss, Program, Route, cross_entropy


def batch_gradients(
    population: Population,
    inputs: Tensor,
    targets: Tensor,
    batches: Sequence[Tensor],
    *,
    loss: Loss = cross_entropy,
) -> Tensor:
    """[b, N, p] the gradient of every batch (its rows), in the mode of the template: dropout counts in training mode.

    Batches of one size are traced once, where they are enough to repay it.
    """
    route: Route = "traced" if len(batches) > 8 else "vmap"
    program = Program(population.template, loss, (False, False), route=route)
    found = []
    for rows in batches:
        _, g, _ = program(population.parameters, population.buffers, inputs[rows], targets[rows])
        found.append(torch.cat([g[k].flatten(1) for k in population.parameters], 1))
    return torch.stack(found)


def full_gradient(
    population: Population, inputs: Tensor, targets: Tensor, *, loss: Loss = cross_entropy
) -> Tensor:
    """[N, p] the gradient of all data in eval mode."""
    was = population.template.training
    population.template.eval()
    try:
        return batch_gradients(population, inputs, targets, [torch.arange(len(inputs))], loss=loss)[0]
    finally:
        population.template.train(was)


def _unit(g: Tensor) -> Tensor:
    return g.double() / g.double().norm(dim=-1, keepdim=True).clamp(min=1e-30)


def direction_variance(gradients: Tensor) -> Tensor:
    """[N] mean of (1 - cosine) / 2 over pairs of batches, of gradients [b, N, p]: 0 aligned, 1/2 unrelated."""
    unit, b = _unit(gradients), len(gradients)
    together = unit.sum(0).square().sum(-1)  # sum of all cosines, b of them with itself
    return (1 - (together - b) / (b * (b - 1))) / 2


def direction_error(gradients: Tensor, full: Tensor) -> Tensor:
    """[N] mean of (1 - cosine) / 2 between each batch's gradient [b, N, p] and that of all data [N, p]."""
    return (1 - (_unit(gradients) * _unit(full)).sum(-1).mean(0)) / 2


__all__ = ["batch_gradients", "direction_error", "direction_variance", "full_gradient"]
