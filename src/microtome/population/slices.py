"""Part of every member: its first layers, or its last, of populations whose networks are ``nn.Sequential``."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from microtome.errors import UsageError
from microtome.population.population import Population


def cut(population: Population, start: int = 0, stop: int | None = None) -> Population:
    """Layers ``start`` to ``stop`` of every member as a population of its own, which shares the weights.

    ``cut(p, 0, 2).predict(x)`` is what the members have after two layers, and ``cut(p, 2)`` goes on from there.

    Raises:
        UsageError: MT494 when the networks are no ``nn.Sequential``.
    """
    if not isinstance(population.template, nn.Sequential):
        raise UsageError(
            "MT494",
            f"{type(population.template).__name__} has no layers in a row to cut",
            fix="build the networks as nn.Sequential",
        )
    made = copy.copy(population)
    made.template = population.template[start:stop]
    held = {name for name, _ in made.template.named_parameters()}
    held |= {name for name, _ in made.template.named_buffers()}
    made.parameters = {k: v for k, v in population.parameters.items() if k in held}
    made.buffers = {k: v for k, v in population.buffers.items() if k in held}
    made.masks = {k: v for k, v in population.masks.items() if k in held}
    return made


def rows(features: Tensor) -> Tensor:
    """[N, n, c, h, w] -> [N, n h w, c]: each position an example, each channel a unit; [N, n, d] stays."""
    return features if features.dim() == 3 else features.movedim(2, -1).flatten(1, -2)


__all__ = ["cut", "rows"]
