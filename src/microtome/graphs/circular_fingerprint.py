"""Circular fingerprints: every atom's neighbourhood is hashed, round after round, and marks a place in a vector.

Algorithm 1 of Duvenaud et al. 2015 (extended-connectivity fingerprints, Rogers & Hahn 2010): an atom's identifier
becomes a hash of its own and its neighbours'; in each round 1..radius its identifier modulo the length is a bit.
Neighbours are hashed as a multiset, so their order does not matter; that is colour refinement.
"""

from __future__ import annotations

import torch
from torch import Tensor

from microtome.errors import UsageError
from microtome.graphs.refinement import feature_colours, refine


def circular_bits(x: Tensor, edge_index: Tensor, *, radius: int = 3, length: int = 2048) -> Tensor:
    """[radius, atoms] int64, the place in the fingerprint that each atom marks in each round.

    Raises:
        UsageError: MT501 for a radius or length below 1.
    """
    if radius < 1 or length < 1:
        raise UsageError("MT501", f"radius={radius} and length={length} have to be 1 or more")
    colours = feature_colours(x, len(x))
    found = []
    for _ in range(radius):
        colours = refine(colours, edge_index)
        found.append(colours.remainder(length))
    return torch.stack(found)


def circular_fingerprints(
    x: Tensor, edge_index: Tensor, batch: Tensor, *, radius: int = 3, length: int = 2048, counts: bool = False
) -> Tensor:
    """[molecules, length] 0 and 1, or how often each place was marked.

    Args:
        x: [atoms, d] features; atoms with equal rows are alike.
        edge_index: [2, m].
        batch: [atoms] which molecule an atom belongs to.
        radius: rounds.
        length: of the fingerprint.
        counts: numbers instead of bits.
    """
    bits = circular_bits(x, edge_index, radius=radius, length=length)
    molecules = int(batch.max()) + 1
    found = torch.zeros(molecules * length).index_add_(
        0, (batch * length + bits).flatten(), torch.ones(bits.numel())
    )
    found = found.reshape(molecules, length)
    return found if counts else (found > 0).float()


def tanimoto_distances(f: Tensor) -> Tensor:
    """[n, n] 1 - sum min / sum max of rows of non-negative fingerprints [n, length]; 0 for two empty ones.

    With |a| the sum of a row, sum min = (|a| + |b| - |a - b|_1) / 2, and sum max the same with a plus.
    """
    total = f.sum(1)
    apart = torch.cdist(f, f, p=1)
    both = total[:, None] + total
    return 2 * apart / (both + apart).clamp_min(1e-30)


__all__ = ["circular_bits", "circular_fingerprints", "tanimoto_distances"]
