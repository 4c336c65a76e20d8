"""Polynomials of a graph that are blind to the order of its nodes, degree by degree (Puny, Lim, Kiani et al. 2023).

A multigraph H stands for P_H(X) = sum over maps j of its nodes to those of the graph of the product over its edges
(r, s) of X[j_r, j_s]: as many factors as H has edges, which is the degree. A marked node keeps its index, so the answer
is one number a node. X is symmetric; numbers of single nodes stand on its diagonal and are read by loops of H. The
polynomials of all H of at most n nodes, none isolated, are a basis; that of an H in pieces is the product of theirs.

The sum is done node by node. The largest number of indices that a partial sum keeps, in the best order, is the
treewidth of H: 1 is what message passing can compute, 2 what products of matrices, entrywise ones too, can (PPGN).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from microtome.data.graphs import geometric
from microtome.errors import UsageError
from microtome.graphs.multigraphs import Multigraph, elimination

geometric()
from torch_geometric.transforms import BaseTransform  # noqa: E402 - only once it is known to be there
from torch_geometric.utils import to_dense_adj  # noqa: E402

LIMIT = 1 << 27
"""Numbers a partial sum may hold."""


def evaluate(polynomials: Sequence[Multigraph], x: Tensor) -> Tensor:
    """[graphs, polynomials], or [graphs, n, polynomials] where they have a marked node.

    Graphs of fewer nodes may be padded with zeros: no polynomial of positive degree reads an isolated node.

    Args:
        polynomials: all marked or none.
        x: [graphs, n, n] symmetric.

    Raises:
        UsageError: MT454 when a partial sum is too large, or marked and unmarked ones are mixed.
    """
    if len({p.roots for p in polynomials}) > 1:
        raise UsageError("MT454", "polynomials of graphs and of nodes are evaluated separately")
    return torch.stack([_value(p, x) for p in polynomials], -1)


def _value(given: Multigraph, x: Tensor) -> Tensor:
    width, order = elimination(given)
    graphs, n = x.shape[:2]
    if graphs * n ** (width + 1) > LIMIT:
        raise UsageError(
            "MT454",
            f"a polynomial of treewidth {width} on {graphs} graphs of {n} nodes is too large",
            fix="fewer graphs at once",
        )
    diagonal = x.diagonal(dim1=1, dim2=2)
    factors: list[tuple[tuple[int, ...], Tensor]] = [
        ((r,), diagonal**m) if r == s else ((r, s), x**m) for r, s, m in given.edges
    ]
    for v in order:
        mine = [f for f in factors if v in f[0]]
        left = tuple(sorted({w for scope, _ in mine for w in scope} - {v}))
        if not mine:  # an isolated node is summed to the number of nodes
            factors.append(((), x.new_full((graphs,), float(n))))
            continue
        factors = [f for f in factors if v not in f[0]] + [(left, _contracted(mine, left))]
    kept = tuple(range(given.roots))
    if not factors:
        return x.new_ones((graphs, n) if kept else (graphs,))
    return _contracted(factors, kept)


def _contracted(factors: list[tuple[tuple[int, ...], Tensor]], left: tuple[int, ...]) -> Tensor:
    batch = 51  # einsum's largest label
    operands: list[Any] = []
    for scope, values in factors:
        operands += [values, [batch, *scope]]
    return torch.einsum(*operands, [batch, *left])


class AddPolynomials(BaseTransform):
    """Appends the value of each polynomial at each node to x, (value - centre) / scale.

    Args:
        polynomials: with one marked node each.
        centre, scale: [polynomials]; 0 and 1 by default, or see :meth:`fit`.
    """

    def __init__(
        self, polynomials: Sequence[Multigraph], *, centre: Tensor | None = None, scale: Tensor | None = None
    ) -> None:
        self.polynomials = tuple(polynomials)
        if any(p.roots != 1 for p in self.polynomials):
            raise UsageError("MT454", "features of nodes need polynomials with one marked node each")
        self.centre = torch.zeros(len(self.polynomials)) if centre is None else centre
        self.scale = torch.ones(len(self.polynomials)) if scale is None else scale

    def fit(self, graphs: Sequence[Any]) -> AddPolynomials:
        """Centre and scale become the mean and standard deviation over the nodes of these graphs; returns itself."""
        values = torch.cat([self.values(g) for g in graphs])
        deviation = values.std(0, unbiased=False)
        self.centre, self.scale = (
            values.mean(0),
            torch.where(deviation > 0, deviation, torch.ones_like(deviation)),
        )
        return self

    def values(self, data: Any) -> Tensor:
        """[nodes, polynomials] float64; edge weights of one column are read."""
        dense = to_dense_adj(data.edge_index, edge_attr=data.edge_attr, max_num_nodes=data.num_nodes)
        return evaluate(self.polynomials, dense.reshape(dense.shape[:3]).double())[0]

    def forward(self, data: Any) -> Any:
        """The graph with more columns."""
        values = ((self.values(data) - self.centre) / self.scale).to(torch.get_default_dtype())
        data.x = values if data.x is None else torch.cat([data.x, values.to(data.x.dtype)], 1)
        return data


def exact_rank(table: Tensor, prime: int = 2_147_483_629) -> int:
    """Rank of an integer matrix [rows, columns] modulo a large prime: never above its rank, almost surely equal."""
    left = table.long() % prime
    rank = 0
    for column in range(left.shape[1]):
        pivots = left[rank:, column].nonzero()
        if not len(pivots):
            continue
        row = rank + int(pivots[0])
        left[[rank, row]] = left[[row, rank]]
        left[rank] = left[rank] * pow(int(left[rank, column]), -1, prime) % prime
        left[rank + 1 :] = (
            left[rank + 1 :] - left[rank + 1 :, column : column + 1] * left[rank] % prime
        ) % prime
        rank += 1
        if rank == left.shape[0]:
            break
    return rank


__all__ = ["LIMIT", "AddPolynomials", "evaluate", "exact_rank"]
