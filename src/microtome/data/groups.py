"""Products in the group of permutations, and the parts into which functions on a group fall apart."""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor

from microtome.errors import UsageError


def permutation_table(n: int) -> Tensor:
    """[n!, n!] number of the product a after b, of permutations in lexicographic order; 0 is the identity.

    Raises:
        UsageError: MT485 beyond 5 things, where the table has half a million entries.
    """
    if not 1 <= n <= 5:
        raise UsageError("MT485", f"the group of permutations of {n} things", fix="give 1 to 5")
    every = list(permutations(range(n)))
    number = {each: i for i, each in enumerate(every)}
    return torch.tensor([[number[tuple(a[b[i]] for i in range(n))] for b in every] for a in every])


def isotypic_projectors(table: Tensor) -> Tensor:
    """[r, m, m] projectors onto the parts of functions on the group that belong to one irreducible representation.

    Class sums commute with everything, and the parts are their common eigenspaces. A part of an irreducible
    representation of dimension d has d^2 dimensions. For groups in which every element is conjugate to its inverse
    (permutations): else two conjugate representations count as one.

    Args:
        table: [m, m] group product, 0 the identity.
    """
    m = len(table)
    inverse = (table == 0).double().argmax(1)
    label = torch.stack([table[table[g], inverse[g]] for g in range(m)]).amin(0)  # the least conjugate, [m]
    draw = torch.Generator().manual_seed(0)
    weight = torch.rand(m, generator=draw, dtype=torch.float64)[label]
    operator = torch.zeros(m, m, dtype=torch.float64)
    rows = torch.arange(m)
    for g in range(m):
        operator[table[g], rows] += weight[g]
    values, vectors = torch.linalg.eigh((operator + operator.T) / 2)
    parts = torch.unique_consecutive((values / 1e-6).round(), return_counts=True)[1].tolist()
    return torch.stack([v @ v.T for v in vectors.split(parts, 1)])


__all__ = ["isotypic_projectors", "permutation_table"]
