"""Which multisets does an aggregator confuse? Exact, over all multisets of integers (Corso et al. 2020, theorem 1).

Of multisets of n numbers, fewer than n continuous aggregators confuse some. For the moments the collisions can be
written down: sets with equal power sums 1..n-1 (the problem of Prouhet, Tarry and Escott) are parted by the n-th alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

EQUAL_POWER_SUMS = {
    2: ((0, 3), (1, 2)),
    3: ((1, 5, 6), (2, 3, 7)),
    4: ((0, 4, 7, 11), (1, 2, 9, 10)),
    5: ((0, 4, 8, 16, 17), (1, 2, 10, 14, 18)),
    6: ((0, 4, 9, 17, 22, 26), (1, 2, 12, 14, 24, 25)),
}
"""Two sets of n integers whose power sums 1..n-1 are equal and whose n-th are not."""
AGGREGATORS = ("mean", "max", "min", "std")


def multisets(size: int, values: int) -> Tensor:
    """[sets, size] int64, every multiset of ``size`` of the integers 0..values-1, each sorted."""
    return torch.tensor(list(itertools.combinations_with_replacement(range(values), size)), dtype=torch.long)


def exact_statistics(sets: Tensor) -> dict[str, Tensor]:
    """[sets] int64 each: equal exactly where the aggregator's value is, for sets [sets, size] of one size.

    The mean is given as the sum, the standard deviation as n sum x^2 - (sum x)^2.
    """
    total, size = sets.sum(1), sets.shape[1]
    return {
        "mean": total,
        "max": sets.amax(1),
        "min": sets.amin(1),
        "std": size * sets.square().sum(1) - total.square(),
    }


def colliding_pairs(statistics: Mapping[str, Tensor], names: Iterable[str]) -> int:
    """How many pairs of multisets have equal values under every aggregator named."""
    table = torch.stack([statistics[name] for name in names], 1)
    count = table.unique(dim=0, return_counts=True)[1]
    return int((count * (count - 1) // 2).sum())


def power_sums(values: Iterable[int], degree: int) -> list[int]:
    """[degree] sums of the 1st to the ``degree``-th power."""
    kept = list(values)
    return [sum(v**k for v in kept) for k in range(1, degree + 1)]


__all__ = [
    "AGGREGATORS",
    "EQUAL_POWER_SUMS",
    "colliding_pairs",
    "exact_statistics",
    "multisets",
    "power_sums",
]
