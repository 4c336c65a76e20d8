"""A learned commutative monoid as aggregation: a binary operator over a balanced tree (Ong & Velickovic 2022)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.data.graphs import geometric
from microtome.errors import UsageError

geometric()
from torch_geometric.nn.aggr import LCMAggregation  # noqa: E402 - only once it is known to be there


class Laws(NamedTuple):
    """How far an operator is from a commutative monoid: mean squared violations over the variance of the elements."""

    commutativity: Tensor
    associativity: Tensor


class LearnedMonoid(LCMAggregation):
    """x_1 * x_2 * ... * x_V by a tree of depth log2 V, where a * b = (GRU(a, b) + GRU(b, a)) / 2.

    PyTorch Geometric's aggregation pads sets with zeros and lets its operator read them, so the answer for a set
    depends on the largest set beside it. Here a missing element is an exact identity, and an empty set gives a learned
    vector. The operator is commutative by its form, unless ``symmetric=False``; associative only as far as it has
    learned to be: add :meth:`laws` to the loss. What remains shows when a set is aggregated in another order.

    Args:
        in_channels, out_channels: widths; the elements are first mapped by a linear map and ReLU.
        symmetric: whether both orders are averaged.
        project: whether elements are mapped; without, the widths must be equal.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, symmetric: bool = True, project: bool = True
    ) -> None:
        if not project and in_channels != out_channels:
            raise UsageError(
                "MT455", f"without a map the widths must be equal, not {in_channels} and {out_channels}"
            )
        super().__init__(in_channels, out_channels, project)
        self.symmetric = symmetric
        self.empty = nn.Parameter(torch.zeros(out_channels))

    def elements(self, x: Tensor) -> Tensor:
        """[n, in] -> [n, out], what the operator works on."""
        return self.lin(x).relu() if self.project else x

    def combine(self, a: Tensor, b: Tensor) -> Tensor:
        """[..., out] a * b."""
        d = self.out_channels
        left, right = a.reshape(-1, d), b.reshape(-1, d)
        if not self.symmetric:
            return self.gru_cell(left, right).view(a.shape)
        both = self.gru_cell(torch.cat([left, right]), torch.cat([right, left]))
        return (both[: len(left)] + both[len(left) :]).view(a.shape) / 2

    def forward(
        self,
        x: Tensor,
        index: Tensor | None = None,
        ptr: Tensor | None = None,
        dim_size: int | None = None,
        dim: int = -2,
        max_num_elements: int | None = None,
    ) -> Tensor:
        """[n, in] elements and the set of each, ascending -> [sets, out]."""
        x, there = self.to_dense_batch(
            self.elements(x), index, ptr, dim_size, dim, max_num_elements=max_num_elements
        )
        while x.shape[1] > 1:
            if x.shape[1] % 2:  # an identity to make pairs
                x, there = F.pad(x, (0, 0, 0, 1)), F.pad(there, (0, 1))
            pairs, held = x.unflatten(1, (-1, 2)), there.unflatten(1, (-1, 2))
            both = held.all(2)
            # Elements fill their row from the front, so the right one of a pair may be missing, never only the left.
            x = pairs[:, :, 0].clone()
            x[both] = self.combine(pairs[:, :, 0][both], pairs[:, :, 1][both])
            there = held.any(2)
        if not x.shape[1]:
            return self.empty.expand(len(x), -1)
        return torch.where(there[:, :1], x[:, 0], self.empty)

    def laws(self, x: Tensor, generator: torch.Generator | None = None) -> Laws:
        """Violations on random triples of ``x`` [n, out] (such as :meth:`elements`, or aggregates of sets)."""
        a, b, c = (x[torch.randperm(len(x), generator=generator)] for _ in range(3))
        # The variance is differentiated too: held fixed, it would reward elements that shrink to one point.
        whole = x.var(0, unbiased=False).sum().clamp_min(1e-12)

        def off(p: Tensor, q: Tensor) -> Tensor:
            return (p - q).square().sum(1).mean() / whole

        ab, bc = self.combine(a, b), self.combine(b, c)
        return Laws(off(ab, self.combine(b, a)), off(self.combine(ab, c), self.combine(a, bc)))


__all__ = ["Laws", "LearnedMonoid"]
