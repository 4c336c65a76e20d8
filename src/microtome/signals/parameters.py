"""Moves in parameter space that remove weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from microtome.signals.expression import ParameterChange
from microtome.signals.noise import row_uniform
from microtome.subject import Subject


@dataclass(frozen=True)
class MagnitudePruned(ParameterChange):
    """The smallest weights set to zero.

    Args:
        names: parameter tensors, judged together: several share one threshold.
        fraction: share of their weights that goes, to the nearest weight; ties go in order of position.
    """

    names: tuple[str, ...]
    fraction: float

    def change(self, subject: Subject, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The pruned tensors."""
        return _pruned(self, parameters, lambda flat: flat.abs())


@dataclass(frozen=True)
class RandomPruned(ParameterChange):
    """As many weights set to zero, chosen by chance: the control of :class:`MagnitudePruned`."""

    names: tuple[str, ...]
    fraction: float
    seed: int = 0

    def change(self, subject: Subject, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The pruned tensors."""
        return _pruned(
            self, parameters, lambda flat: row_uniform(torch.arange(len(flat), device=flat.device), self.seed)
        )


def _pruned(
    how: MagnitudePruned | RandomPruned, parameters: Mapping[str, Tensor], keys: Callable[[Tensor], Tensor]
) -> Mapping[str, Tensor]:
    tensors = [parameters[name] for name in how.names]
    flat = torch.cat([t.reshape(-1) for t in tensors])
    kept = ~smallest(keys(flat), round(how.fraction * len(flat)))
    pieces = torch.where(kept, flat, torch.zeros_like(flat)).split([t.numel() for t in tensors])
    # Tensors of several types, joined, took the widest one.
    return {
        name: piece.reshape(t.shape).to(t.dtype)
        for name, piece, t in zip(how.names, pieces, tensors, strict=True)
    }


def smallest(keys: Tensor, count: int) -> Tensor:
    """[p] bool: exactly ``count`` entries, the smallest; of equal ones the first."""
    if count <= 0:
        return torch.zeros_like(keys, dtype=torch.bool)
    keys = keys.float() if keys.dtype in (torch.bfloat16, torch.float16) else keys
    edge = keys.kthvalue(min(count, len(keys))).values
    chosen = keys < edge
    ties = (keys == edge).nonzero()[:, 0]
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen
