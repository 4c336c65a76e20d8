"""PhenomNN: node embeddings that minimise an energy of a hypergraph (Wang, Gan, Qiu, Huang & Wipf 2023).

    E(Y) = |Y - F|^2 + clique * sum over e of sum over pairs {i, j} of e of (|y_i C - y_j|^2 + |y_j C - y_i|^2) / 2
                     + star * sum over e of sum over i in e of |y_i S - mean of e|^2

F are features as a perceptron gives them, C and S compatibility matrices (the identity by default). A layer is a step
of preconditioned gradient descent and, as Y >= 0 is asked for, a rectifier: its proximal map. Without compatibility the
star term is the clique term with weight 1 / |e|, the hyperedge's node being solved for: all is a weighted graph then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.data.graphs import geometric
from microtome.errors import UsageError

geometric()
from torch_geometric.nn import MessagePassing  # noqa: E402 - only once it is known to be there


@dataclass(frozen=True, eq=False)
class _Terms:
    """Degrees [nodes] in the clique graph and in hyperedges, and 1 / size [hyperedges]."""

    clique: Tensor
    star: Tensor
    mean: Tensor


class HypergraphDescent(MessagePassing):
    """Steps down the energy from Y = F, in PyTorch Geometric's convention for hyperedges.

    With ``normalise`` y_i is divided by the root of i's degree in either term, as GCN (with a loop) and HGNN do: then
    ``star=0, step=1`` is APPNP on the clique graph with teleport 1 / (1 + clique), exactly.

    Args:
        channels: width of Y; only ``compatible`` needs it.
        steps: how many.
        clique, star: weights of the two terms.
        step: length; up to 1 no step goes up while the compatibilities are the identity.
        positive: whether Y >= 0.
        compatible: whether the two matrices are learned; they begin as the identity.
        normalise: whether by degree.
    """

    def __init__(
        self, channels: int, steps: int = 16, *, clique: float = 0.0, star: float = 1.0, step: float = 1.0,
        positive: bool = True, compatible: bool = False, normalise: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(aggr="add")
        if min(clique, star) < 0 or not 0 < step <= 1 or steps < 1:
            raise UsageError(
                "MT505", f"clique={clique}, star={star}, step={step}, steps={steps} give no descent",
                fix="weights of 0 or more, a step in 0..1, a step or more",
            )  # fmt: skip
        self.steps, self.clique, self.star, self.step = steps, clique, star, step
        self.positive, self.normalise = positive, normalise
        self.of_clique = nn.Parameter(torch.eye(channels)) if compatible and clique else None
        self.of_star = nn.Parameter(torch.eye(channels)) if compatible and star else None

    def forward(self, x: Tensor, hyperedge_index: Tensor) -> Tensor:
        """F [nodes, channels] and (node, hyperedge) pairs [2, m] -> Y [nodes, channels]."""
        terms, y = self._terms(x, hyperedge_index), x
        for _ in range(self.steps):
            y = self._next(y, x, hyperedge_index, terms)
        return y

    def trace(self, x: Tensor, hyperedge_index: Tensor) -> Tensor:
        """[steps + 1] the energy before each step and after the last."""
        terms, y = self._terms(x, hyperedge_index), x.clamp_min(0) if self.positive else x
        found = [self.energy(y, x, hyperedge_index)]
        for _ in range(self.steps):
            y = self._next(y, x, hyperedge_index, terms)
            found.append(self.energy(y, x, hyperedge_index))
        return torch.stack(found)

    def energy(self, y: Tensor, x: Tensor, hyperedge_index: Tensor) -> Tensor:
        """E(Y), a scalar."""
        terms = self._terms(x, hyperedge_index)
        return (y - x).square().sum() + (y * self._pull(y, hyperedge_index, terms)).sum()

    def minimiser(self, x: Tensor, hyperedge_index: Tensor) -> Tensor:
        """[nodes, channels] the least energy over all Y, by a dense solve; of the identity as compatibility.

        Raises:
            UsageError: MT505 where Y >= 0 or a compatibility has no closed form.
        """
        if self.positive or self.of_star is not None or self.of_clique is not None:
            raise UsageError(
                "MT505", "only without positive and compatible is there a closed form",
                fix="positive=False, compatible=False",
            )  # fmt: skip
        unit = torch.eye(len(x), dtype=x.dtype)
        system = unit + self._pull(unit, hyperedge_index, self._terms(x, hyperedge_index))
        return torch.linalg.solve(system, x)

    def _next(self, y: Tensor, x: Tensor, index: Tensor, terms: _Terms) -> Tensor:
        slope = y - x + self._pull(y, index, terms)
        if self.normalise:
            y = y - self.step * slope / (1 + self.clique + self.star)
        else:
            y = y - self.step * slope / (1 + self.clique * terms.clique + self.star * terms.star)[:, None]
        return y.clamp_min(0) if self.positive else y

    def _pull(self, y: Tensor, index: Tensor, terms: _Terms) -> Tensor:
        """[nodes, channels] half the slope of both terms; as they are quadratic, Y times it is their energy."""
        total = torch.zeros_like(y)
        for weight, degree, matrix, star in (
            (self.clique, terms.clique, self.of_clique, False), (self.star, terms.star, self.of_star, True),
        ):  # fmt: skip
            if not weight:
                continue
            there = degree > 0
            root = degree.clamp_min(1).rsqrt() * there if self.normalise else torch.ones_like(degree)
            own = (there.to(y.dtype) if self.normalise else degree)[:, None] * y
            scaled = y * root[:, None]
            near = self._through(scaled, index, terms.mean if star else torch.ones_like(terms.mean))
            if not star:  # no pairs of a node with itself, but for the loop that GCN adds
                near = near - terms.star[:, None] * scaled + (scaled if self.normalise else 0)
            near = near * root[:, None]
            if matrix is None:
                total = total + weight * (own - near)
            elif star:
                total = total + weight * (own @ matrix @ matrix.T - near @ (matrix + matrix.T) + near)
            else:
                total = total + weight / 2 * (own @ matrix @ matrix.T - near @ (matrix + matrix.T) + own)
        return total

    def _through(self, y: Tensor, index: Tensor, scale: Tensor) -> Tensor:
        """[nodes, channels] the sum over a node's hyperedges of scale times the sum over their nodes."""
        nodes, edges = len(y), len(scale)
        inside = scale[:, None] * self.propagate(index, x=(y, None), size=(nodes, edges))
        back: Tensor = self.propagate(index.flip(0), x=(inside, None), size=(edges, nodes))
        return back

    def _terms(self, x: Tensor, index: Tensor) -> _Terms:
        node, edge = index
        edges = int(edge.max()) + 1 if edge.numel() else 0
        one = torch.ones(len(node), dtype=x.dtype)
        sizes = x.new_zeros(edges).index_add_(0, edge, one)
        held = x.new_zeros(len(x)).index_add_(0, node, one)
        pairs = x.new_zeros(len(x)).index_add_(0, node, sizes[edge] - 1)
        return _Terms(pairs + 1 if self.normalise else pairs, held, 1 / sizes.clamp_min(1))


class PhenomNN(nn.Module):
    """A perceptron, descent of the energy, and a linear map of its (near) minimiser.

    Args:
        inputs, hidden, outputs: widths.
        dropout: of features and embeddings.
        **options: of :class:`HypergraphDescent`.
    """

    def __init__(
        self, inputs: int, hidden: int, outputs: int, *, dropout: float = 0.5, **options: Any
    ) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
        self.descent, self.dropout = HypergraphDescent(hidden, **options), dropout

    def forward(self, x: Tensor, hyperedge_index: Tensor) -> Tensor:
        """[nodes, inputs] -> [nodes, outputs]."""
        x = self.first(F.dropout(x, self.dropout, self.training))
        y = self.descent(x, hyperedge_index)
        found: Tensor = self.last(F.dropout(y, self.dropout, self.training))
        return found


__all__ = ["HypergraphDescent", "PhenomNN"]
