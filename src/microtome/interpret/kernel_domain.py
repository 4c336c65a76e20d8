"""What a very wide network makes of two inputs: kernels as values, and the domain that carries them.

Weights are random, inputs are numbers. A layer of random weights turns numbers into a ``Kernel``: the covariance of a
unit's values at two inputs (NNGP), and the inner product of their gradients by all weights so far (NTK), both means
over infinitely many like units. Rules are in ``kernel_rules``; ``kernels`` has the plain function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from microtome.errors import SubjectError
from microtome.interpret.graph import Node
from microtome.interpret.interpreter import At, Domain

Parametrization = Literal["standard", "ntk"]


class Wide:
    """An abstract value: a kernel, or a parameter."""


@dataclass(frozen=True, eq=False)
class Random(Wide):
    """A parameter: entries drawn independently. ``tensor`` holds those of one network, for their shape and variance."""

    tensor: Tensor
    name: str

    @property
    def shape(self) -> torch.Size:
        """Shape of the tensor."""
        return self.tensor.shape

    @property
    def dtype(self) -> torch.dtype:
        """Type of the tensor."""
        return self.tensor.dtype

    @property
    def device(self) -> torch.device:
        """Device of the tensor."""
        return self.tensor.device


@dataclass(frozen=True, eq=False, kw_only=True)
class Kernel(Wide):
    """A value of shape [n, ...] whose units are random and alike.

    Attributes:
        nngp: [n, n, p] covariances of two inputs at the same of p positions, or [n, n, p, p] at any two.
        ntk: the same of inner products of gradients.
        shape: of the value that the program has here.
        sizes: positions as they stand in the shape; their product is p.
        unit: the dimension along which units are; None when it holds units and positions together (flattened).
        gaussian: whether the units are jointly Gaussian of mean 0.
        fresh: weights, one for each summand, in which this value is linear; None where a summand has none.
        history: all weights it depends on.
    """

    nngp: Tensor
    ntk: Tensor
    shape: torch.Size
    sizes: tuple[int, ...] = ()
    unit: int | None = 1
    gaussian: bool = False
    fresh: frozenset[str] | None = None
    history: frozenset[str] = frozenset()

    @property
    def dtype(self) -> torch.dtype:
        """float64."""
        return self.nngp.dtype

    @property
    def device(self) -> torch.device:
        """Device of the kernels."""
        return self.nngp.device

    @property
    def full(self) -> bool:
        """Whether covariances between positions are there."""
        return self.nngp.dim() == 4

    @property
    def same(self) -> tuple[Tensor, Tensor]:
        """[n, n, p] NNGP and NTK of the same position."""
        if not self.full:
            return self.nngp, self.ntk
        return self.nngp.diagonal(dim1=2, dim2=3), self.ntk.diagonal(dim1=2, dim2=3)

    def moved(self, nngp: Tensor, ntk: Tensor, **changes: Any) -> Kernel:
        """With other kernels."""
        return replace(self, nngp=nngp, ntk=ntk, **changes)

    def narrowed(self) -> Kernel:
        """Without covariances between positions."""
        return self.moved(*self.same) if self.full else self


@dataclass(frozen=True)
class Layer:
    """A layer of weights on the way, or a function between two: what the recursion took it to be.

    Attributes:
        node: where.
        kind: "weights" or "function".
        sigma_w: deviation of its weights times the root of the fan-in; 0 for a function.
        sigma_b: deviation of its biases.
        slope: E f'^2, mean over inputs and positions; 0 for weights.
    """

    node: Node
    kind: Literal["weights", "function"]
    sigma_w: float = 0.0
    sigma_b: float = 0.0
    slope: float = 0.0


@dataclass(frozen=True)
class InfiniteWidth(Domain):
    """The domain. ``full`` lists the nodes where covariances between positions are needed."""

    name: ClassVar[str] = "infinite width"
    value: ClassVar[type | None] = Wide
    sigma_w: float | None = None
    sigma_b: float | None = None
    parametrization: Parametrization = "standard"
    full: frozenset[Node] = field(default=frozenset(), compare=False)
    limit: int = 1 << 27
    layers: list[Layer] = field(default_factory=list, compare=False)

    def deviations(self, weight: Random, bias: Any, fan_in: int) -> tuple[float, float]:
        """(sigma_w^2, sigma_b^2) of a layer: as asked for, or the mean squares of this network's own."""
        own = float(weight.tensor.double().square().mean()) * fan_in
        w = own if self.sigma_w is None else self.sigma_w**2
        if bias is None:
            return w, 0.0
        held = bias.tensor if isinstance(bias, Random) else bias
        return w, float(held.double().square().mean()) if self.sigma_b is None else self.sigma_b**2

    def affordable(self, at: At, n: int, positions: int, full: bool) -> None:
        """Refuse what would not fit.

        Raises:
            SubjectError: MT375.
        """
        numbers = n * n * positions * (positions if full else 1)
        if numbers > self.limit:
            words = "pairs of positions" if full else "positions"
            raise SubjectError(
                "MT375",
                f"kernels of {n} inputs over {positions} positions and all {words} have {numbers:.2g} numbers, "
                f"more than {self.limit:.2g}",
                where=at.node.place(),
                fix="take fewer or smaller inputs, or raise the limit",
            )


def refused(at: At, why: str, fix: str = "ask about a network without it") -> SubjectError:
    """The error for what has no meaning at infinite width."""
    return SubjectError("MT374", f"'{at.node.operation}' {why}", where=at.node.place(), fix=fix)


def begun(at: At, x: Tensor, unit: int) -> Kernel:
    """Numbers [n, ...] as a kernel: inner products over the units, which are along dimension ``unit``."""
    x = x.double().movedim(unit, 1)
    n, width, sizes = len(x), x.shape[1], tuple(x.shape[2:])
    positions = math.prod(sizes)
    full = at.node in at.domain.full
    at.domain.affordable(at, n, positions, full)
    flat = x.reshape(n, width, positions)
    nngp = torch.einsum("icp,jcq->ijpq" if full else "icp,jcp->ijp", flat, flat) / width
    return Kernel(
        nngp=nngp, ntk=torch.zeros_like(nngp), shape=x.movedim(1, unit).shape, sizes=sizes, unit=unit
    )


def settled(at: At, kernel: Kernel) -> Kernel:
    """Without covariances between positions, where nothing later needs them."""
    return kernel if at.node in at.domain.full else kernel.narrowed()
