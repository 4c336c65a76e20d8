"""How far the gradients of single examples lie apart, for every member of a population; and descent with such noise."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from microtome.population.population import Population
from microtome.population.program import Loss, State


def gradient_noise(population: Population, loss: Loss, inputs: Tensor, targets: Tensor) -> Tensor:
    """[N] trace of the covariance of per-example gradients: mean |g_i|^2 - |mean g|^2.

    Args:
        loss: of one batch; each example is given as a batch of one.
        inputs: [n, ...] for all members.
        targets: [n, ...].
    """

    def of_one(parameters: State, buffers: State) -> Tensor:
        def single(own: State, x: Tensor, y: Tensor) -> Tensor:
            return loss(functional_call(population.template, (own, buffers), (x[None],)), y[None])

        found = vmap(grad(single), in_dims=(None, 0, 0))(parameters, inputs, targets)
        g = torch.cat([v.flatten(1) for v in found.values()], 1)
        return (g - g.mean(0)).square().sum(1).mean()

    with torch.no_grad():
        return torch.stack(
            [
                of_one(
                    {k: v[i] for k, v in population.parameters.items()},
                    {k: v[i] for k, v in population.buffers.items()},
                )
                for i in range(len(population))
            ]
        )


def weighted_at_random(loss: Loss, batch: int) -> Loss:
    """The full-batch loss whose gradient carries Gaussian noise of the covariance of batches drawn with replacement.

    Every example has the weight 1 + z sqrt(n / batch) with the z of an update summing to 0: noise-injected gradient
    descent, when trained without batches. ``loss`` is of a batch and is given examples one by one.
    """

    def noisy(outputs: Tensor, targets: Tensor) -> Tensor:
        each = vmap(lambda o, t: loss(o[None], t[None]))(outputs, targets)
        z = torch.randn_like(each)
        return (each * (1 + (z - z.mean()) * (len(each) / batch) ** 0.5)).mean()

    return noisy


__all__ = ["gradient_noise", "weighted_at_random"]
