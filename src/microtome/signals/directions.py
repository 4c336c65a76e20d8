"""Moves in parameter space: along given directions, and directions that are fair to rescaled filters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from microtome.signals.expression import Constant, ParameterChange

if TYPE_CHECKING:
    from microtome.subject import Subject


@dataclass(frozen=True)
class Along(ParameterChange):
    """theta + sum_i steps_i * direction_i; each direction is a flat vector [p] in the parameters' order."""

    directions: tuple[Constant, ...]
    steps: tuple[float, ...]

    def change(self, subject: Subject, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Move every parameter that some direction touches."""
        terms = [(d.value, s) for d, s in zip(self.directions, self.steps, strict=True) if s != 0]
        if not terms:
            return {}
        whole, size = terms[0]
        for value, step in terms[1:]:
            whole, size = whole.mul(size).add_(value, alpha=step), 1.0
        parts = subject.split_parameters(whole)
        here = [parameters[name] for name in parts]
        along = [p.to(x.device, x.dtype) for p, x in zip(parts.values(), here, strict=True)]
        # All tensors in one call: a small network has more parameters than arithmetic.
        return dict(zip(parts, torch._foreach_add(here, along, alpha=size), strict=True))

    def __repr__(self) -> str:
        return f"Along({', '.join(f'{step:+.3g}' for step in self.steps)})"


def random_signs(subject: Subject, count: int, seed: int) -> Tensor:
    """[count, p] independent -1 or +1 (Rademacher), in the parameters' dtype and on their device."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, 2, (count, subject.parameter_count), generator=generator, dtype=torch.int8)
    return (2 * drawn - 1).to(subject.device, _dtype(subject))


def filter_normalised(subject: Subject, seed: int) -> Tensor:
    """A random direction [p] in which every filter is as long as the network's own (Li et al. 2018).

    Normal numbers d; each filter (slice along dimension 0 of a tensor of two or more dimensions) becomes
    d * |theta| / |d|. Tensors of one dimension, which are biases and the scales of normalisation, stay put.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for value in subject.parameters.values():
        drawn = torch.randn(value.shape, generator=generator, dtype=torch.float32)
        drawn = drawn.to(value.device, torch.float64)
        if value.dim() < 2:
            parts.append(torch.zeros_like(drawn).reshape(-1))
            continue
        flat, own = drawn.flatten(1), value.to(torch.float64).flatten(1)
        length = flat.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        parts.append((flat * (own.norm(dim=1, keepdim=True) / length)).reshape(-1))
    return torch.cat(parts).to(_dtype(subject))


def _dtype(subject: Subject) -> torch.dtype:
    """The widest among the parameters', so that a vector loses nothing on its way to them."""
    kinds = {p.dtype for p in subject.parameters.values()}
    return torch.float64 if torch.float64 in kinds else torch.float32
