"""Every member made smaller: weights of least magnitude set to 0, or rounded to few levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from microtome.errors import UsageError
from microtome.population.population import Population


def magnitude_masks(
    population: Population, sparsity: float, names: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """Masks for :meth:`Population.mask` that keep each member's largest weights, over all matrices together.

    Args:
        population: N trained networks.
        sparsity: share of weights that become 0, exact but for less than one weight.
        names: parameters that are pruned; by default all of two or more dimensions (no biases).

    Raises:
        UsageError: MT498 for a share outside 0..1.
    """
    if not 0 <= sparsity < 1:
        raise UsageError("MT498", f"a share of {sparsity} cannot be pruned", fix="give 0 <= sparsity < 1")
    chosen = (
        list(names) if names is not None else [k for k, p in population.parameters.items() if p.dim() > 2]
    )
    sizes = [population.parameters[k][0].numel() for k in chosen]
    flat = torch.cat([population.parameters[k].abs().flatten(1) for k in chosen], 1)  # [N, p]
    rank = flat.argsort(1).argsort(1)
    kept = (rank >= round(sparsity * flat.shape[1])).float()
    return {
        k: part.view_as(population.parameters[k])
        for k, part in zip(chosen, kept.split(sizes, 1), strict=True)
    }


def quantised(population: Population, bits: int) -> Population:
    """A copy whose matrices are rounded to 2^bits - 1 even levels, symmetric around 0, one scale a matrix and member.

    w -> s round(w / s), s = max |w| / (2^(bits - 1) - 1). Biases stay.

    Raises:
        UsageError: MT498 for fewer than 2 bits.
    """
    if bits < 2:
        raise UsageError("MT498", f"{bits} bits have no levels on both sides of 0", fix="give at least 2")
    made = population.copy()
    for name, p in made.parameters.items():
        if p.dim() > 2:
            scale = p.flatten(1).abs().amax(1).clamp(min=1e-30) / (2 ** (bits - 1) - 1)
            scale = scale.reshape(-1, *[1] * (p.dim() - 1))
            made.parameters[name] = (p / scale).round() * scale
    return made


__all__ = ["magnitude_masks", "quantised"]
