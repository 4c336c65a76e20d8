"""Tables of operations modulo a prime: every pair of numbers once, some to learn from and the rest to test on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from microtome.errors import UsageError, nearest

OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "x+y": lambda x, y: x + y,
    "x-y": lambda x, y: x - y,
    "x*y": lambda x, y: x * y,
    "x^2+xy+y^2": lambda x, y: x * x + x * y + y * y,
}
"""Name -> the operation, before the remainder. "random" is one more: each answer drawn alike and on its own."""


def modular_pairs(p: int) -> Tensor:
    """[p^2, 2] all pairs (x, y) of 0 .. p - 1; the row of a pair is p x + y."""
    if p < 2:
        raise UsageError("MT480", f"there is no arithmetic modulo {p}", fix="give at least 2")
    return torch.cartesian_prod(torch.arange(p), torch.arange(p))


def modular_table(p: int, operation: str = "x+y", *, seed: int = 0) -> Tensor:
    """[p^2] the operation's answers to :func:`modular_pairs`; ``seed`` is that of "random".

    Raises:
        UsageError: MT481 for an unknown operation.
    """
    pairs = modular_pairs(p)
    if operation == "random":
        return torch.randint(p, (p * p,), generator=torch.Generator().manual_seed(seed))
    if operation not in OPERATIONS:
        raise UsageError(
            "MT481",
            f"no operation is called '{operation}'",
            fix=nearest(operation, OPERATIONS) or f"one of {', '.join([*OPERATIONS, 'random'])}",
        )
    return OPERATIONS[operation](pairs[:, 0], pairs[:, 1]) % p


@dataclass(frozen=True)
class Modular:
    """Tables for N networks, each with its own answers and its own pairs to learn from.

    Attributes:
        pairs: [p^2, 2] every pair, the same for all.
        answers: [N, p^2].
        trained: [N, p^2] whether the pair is learnt from.
        x: [N, n, 2] the pairs learnt from.
        y: [N, n] their answers.
    """

    pairs: Tensor
    answers: Tensor
    trained: Tensor
    x: Tensor
    y: Tensor


def modular(p: int, share: float, operations: Sequence[str], seeds: Sequence[int]) -> Modular:
    """One table a network: ``operations[i]``, split with ``seeds[i]``; the same seed gives the same split.

    Args:
        p: modulus.
        share: of the p^2 pairs to learn from, rounded to a whole number of pairs.
        operations: [N], each of :data:`OPERATIONS` or "random".
        seeds: [N].
    """
    count = round(share * p * p)
    if not 0 < count <= p * p:
        raise UsageError("MT482", f"a share of {share} leaves {count} of {p * p} pairs", fix="0 < share <= 1")
    pairs = modular_pairs(p)
    answers = torch.stack([modular_table(p, o, seed=s) for o, s in zip(operations, seeds, strict=True)])
    order = torch.stack([torch.randperm(p * p, generator=torch.Generator().manual_seed(s)) for s in seeds])
    taken = order[:, :count]
    trained = torch.zeros_like(answers, dtype=torch.bool).scatter_(1, taken, True)
    return Modular(pairs, answers, trained, pairs[taken], answers.gather(1, taken))


__all__ = ["OPERATIONS", "Modular", "modular", "modular_pairs", "modular_table"]
