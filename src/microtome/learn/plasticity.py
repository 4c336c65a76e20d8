"""Can a network still learn? A stream of new tasks, a probe that trains copies on a fresh one (Lyle et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from microtome.population import Moment, Population, Recipe, every, train
from microtome.population.program import Loss

Watch = Callable[[Population, int], None]
"""(population, number of the task about to be learnt)."""


def random_labels(members: int, examples: int, classes: int, task: int, *, seed: int = 0) -> Tensor:
    """[members, examples] labels drawn anew for every member and task, without relation to the examples."""
    draw = torch.Generator().manual_seed((seed * 1_000_003 + task) % (1 << 63))
    return torch.randint(classes, (members, examples), generator=draw)


def final_loss(population: Population, inputs: Tensor, targets: Tensor, loss: Loss) -> Tensor:
    """[N] loss on all examples in eval mode; targets [N, n]."""
    outputs = population.predict(inputs)
    return torch.stack([loss(o, t) for o, t in zip(outputs, targets, strict=True)])


def probe(population: Population, inputs: Tensor, targets: Tensor, recipe: Recipe) -> Tensor:
    """[N] loss that copies of the members reach on a new task with a fixed budget and a fresh optimiser.

    Args:
        population: left as it is.
        inputs: [n, ...].
        targets: [N, n, ...], each member's own.
        recipe: the budget.
    """
    copies = population.copy()
    train(copies, inputs, targets, recipe, private=(False, True))
    return final_loss(copies, inputs, targets, recipe.loss)


def stream(
    population: Population,
    inputs: Tensor,
    targets: Callable[[int], Tensor],
    recipe: Recipe,
    tasks: int,
    *,
    watch: Watch | None = None,
) -> Tensor:
    """[tasks, N] loss at the end of each task: members learn one after another, weights and optimiser carried on.

    Args:
        population: trained in place.
        inputs: [n, ...], the same in all tasks.
        targets: task -> [N, n, ...].
        recipe: of one task, in steps; the optimiser's state lives on, as it does where nobody announces a new task.
        tasks: how many.
        watch: called before each.
    """
    steps, found = recipe.steps or 0, list[Tensor]()
    given = targets(0).clone()

    def turn(moment: Moment) -> None:
        task = moment.step // steps
        if task:
            found.append(final_loss(moment.population, inputs, given, recipe.loss))
        if task < tasks:
            if watch is not None:
                watch(moment.population, task)
            given.copy_(targets(task))  # training reads its batches from here: one program serves all tasks

    whole = replace(recipe, steps=steps * tasks)
    train(population, inputs, given, whole, private=(False, True), observers=[(turn, every(steps))])
    return torch.stack(found)


__all__ = ["Watch", "final_loss", "probe", "random_labels", "stream"]
