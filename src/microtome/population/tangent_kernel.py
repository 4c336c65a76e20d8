"""Tangent kernels of a population: how alike two inputs are to gradient descent (Jacot et al. 2018)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.func import functional_call, jacrev, vmap

from microtome.population.population import Population
from microtome.population.program import State


def jacobians(population: Population, inputs: Tensor) -> Iterator[Tensor]:
    """[n, k, p] of one member after another: derivatives of its k outputs by its p parameters, in eval mode.

    Outputs [n] count as k = 1. A member at a time, for a Jacobian is k n times as large as the network; an example at
    a time within, so it costs k backward passes, and no example may depend on another.
    """
    was = population.template.training
    population.template.eval()

    def one(own: State, buffers: State, example: Tensor) -> Tensor:
        def answer(weights: State) -> Tensor:
            out: Tensor = functional_call(population.template, (weights, buffers), (example[None],))
            return out.reshape(-1)

        return torch.cat([j.flatten(1) for j in jacrev(answer)(own).values()], 1)

    try:
        for i in range(len(population)):
            own, buffers = (
                {k: v[i] for k, v in h.items()} for h in (population.parameters, population.buffers)
            )
            with torch.no_grad():
                found: Tensor = vmap(one, in_dims=(None, None, 0))(own, buffers, inputs)
            yield found
    finally:
        population.template.train(was)


def tangent_kernels(population: Population, inputs: Tensor) -> Tensor:
    """[N, n k, n k] J J^T of every member; rows go through outputs first, then examples.

    With the loss of :func:`microtome.learn.squared_error.half_squared_error` a small step of gradient descent moves the
    answers by -rate K (f - y) / n.
    """
    return torch.stack([(flat := j.flatten(0, 1)) @ flat.T for j in jacobians(population, inputs)])


__all__ = ["jacobians", "tangent_kernels"]
