"""PhenomNN: node embeddings that minimise an energy of a hypergraph (Wang, Gan, Qiu, Huang & Wipf 2023).

    E(Y) = |Y - F|^2 + clique * sum over e of sum over pairs {i, j} of e of (|y_i C - y_j|^2 + |y_j C - y_i|^2) / 2
                     + star * sum over e of sum over i in e of |y_i S - mean of e|^2

F are features as a perceptron gives them, C and S compatibility matrices (the identity by default). A layer is a step
of preconditioned gradient descent and, as Y >= 0 is asked for, a rectifier: its proximal map. Without compatibility the
star term is the clique term with weight 1 / |e|, the hyperedge's node being solved for: all is a weighted graph then.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.data.graphs import geometric
from microtome.errors import UsageError

geometric()
from torch_geometric.utils import to_torch_csr_tensor  # noqa: E402 - only once it is known to be there


@dataclass(frozen=True, eq=False)
class _Term:
    """One of the two sums: ``weight * (own y - near(y))`` is half its slope while its matrix is the identity.

    Attributes:
        weight: of the term.
        matrix: of compatibility; None is the identity.
        star: which of the two.
        degree, own, loop: [nodes, 1] neighbours; what y is taken times; what near(y) has of y itself beside the sums.
        inward, outward: sparse, [hyperedges, nodes] and [nodes, hyperedges]; one after the other is near.
    """

    weight: float
    matrix: Tensor | None
    star: bool
    degree: Tensor
    own: Tensor
    loop: Tensor
    inward: Tensor
    outward: Tensor

    def near(self, y: Tensor) -> Tensor:
        """[nodes, channels] what the neighbours of each node say."""
        found: Tensor = _Through.apply(y, self.inward, self.outward)
        return found + self.loop * y


class _Through(torch.autograd.Function):
    """Into the hyperedges and back; the two are each other's transpose, so the slope takes the same way."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, inward: Tensor, outward: Tensor) -> Tensor:
        ctx.ways = inward, outward
        return outward @ (inward @ y.detach())

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        return _Through.apply(slope, *ctx.ways), None, None


def _sparse(index: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():  # torch calls the layout a beta
        warnings.filterwarnings("ignore", message=".*[Ss]parse.*")
        return to_torch_csr_tensor(index, values, shape)


class HypergraphDescent(nn.Module):
    """Steps down the energy from Y = F, hyperedges as PyTorch Geometric has them.

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
        super().__init__()
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
            y = self._next(y, x, terms)
        return y

    def trace(self, x: Tensor, hyperedge_index: Tensor) -> Tensor:
        """[steps + 1] the energy before each step and after the last."""
        terms, y = self._terms(x, hyperedge_index), x.clamp_min(0) if self.positive else x
        found = [self.energy(y, x, hyperedge_index)]
        for _ in range(self.steps):
            y = self._next(y, x, terms)
            found.append(self.energy(y, x, hyperedge_index))
        return torch.stack(found)

    def energy(self, y: Tensor, x: Tensor, hyperedge_index: Tensor) -> Tensor:
        """E(Y), a scalar."""
        terms = self._terms(x, hyperedge_index)
        return (y - x).square().sum() + (y * self._pull(y, terms)).sum()

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
        system = unit + self._pull(unit, self._terms(x, hyperedge_index))
        return torch.linalg.solve(system, x)

    def _next(self, y: Tensor, x: Tensor, terms: tuple[_Term, ...]) -> Tensor:
        slope = y - x + self._pull(y, terms)
        if self.normalise:
            y = y - self.step * slope / (1 + self.clique + self.star)
        else:
            y = y - self.step * slope / (1 + sum(term.weight * term.degree for term in terms))
        return y.clamp_min(0) if self.positive else y

    def _pull(self, y: Tensor, terms: tuple[_Term, ...]) -> Tensor:
        """[nodes, channels] half the slope of both terms; as they are quadratic, Y times it is their energy."""
        total = torch.zeros_like(y)
        for term in terms:
            own, near, matrix = term.own * y, term.near(y), term.matrix
            if matrix is None:
                total = total + term.weight * (own - near)
            elif term.star:
                total = total + term.weight * (own @ matrix @ matrix.T - near @ (matrix + matrix.T) + near)
            else:
                total = total + term.weight / 2 * (own @ matrix @ matrix.T - near @ (matrix + matrix.T) + own)
        return total

    def _terms(self, x: Tensor, index: Tensor) -> tuple[_Term, ...]:
        node, edge = index
        nodes, edges = len(x), int(edge.max()) + 1 if edge.numel() else 0
        sizes = x.new_zeros(edges).index_add_(0, edge, x.new_ones(len(edge)))
        held = x.new_zeros(nodes).index_add_(0, node, x.new_ones(len(node)))
        pairs = x.new_zeros(nodes).index_add_(0, node, sizes[edge] - 1)
        found = []
        for weight, matrix, star in ((self.clique, self.of_clique, False), (self.star, self.of_star, True)):
            if not weight:
                continue
            degree = held if star else pairs + 1 if self.normalise else pairs
            there = (degree > 0).to(x.dtype)
            root = degree.clamp_min(1).rsqrt() * there if self.normalise else torch.ones_like(degree)
            values = root[node] * (sizes[edge].rsqrt() if star else torch.ones_like(root[node]))
            # Of pairs a node has none with itself, but for the loop that GCN adds.
            loop = torch.zeros_like(root) if star else root**2 * (float(self.normalise) - held)
            found.append(
                _Term(
                    weight, matrix, star,
                    degree[:, None], (there if self.normalise else degree)[:, None], loop[:, None],
                    _sparse(index.flip(0), values, (edges, nodes)), _sparse(index, values, (nodes, edges)),
                )
            )  # fmt: skip
        return tuple(found)


class PhenomNN(nn.Module):
    """F = relu(linear map), descent of the energy, and a linear map of its (near) minimiser.

    Where neighbours say more than a node's own features, few steps classify better than many: the minimum keeps each
    node's noise by 1 / (1 + weights), and what classes share by little more.

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
        x = F.relu(self.first(F.dropout(x, self.dropout, self.training)))
        y = self.descent(F.dropout(x, self.dropout, self.training), hyperedge_index)
        found: Tensor = self.last(F.dropout(y, self.dropout, self.training))
        return found


__all__ = ["HypergraphDescent", "PhenomNN"]
