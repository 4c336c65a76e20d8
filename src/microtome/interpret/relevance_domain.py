"""The relevance domain: which rule goes where, and what one walk keeps in mind."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

from microtome.errors import UsageError, nearest
from microtome.interpret.graph import Graph, Node
from microtome.interpret.interpreter import At, Domain
from microtome.interpret.operations import SHAPE_ONLY, overloads
from microtome.interpret.relevance_rules import (
    STABILISER,
    AlphaBeta,
    Box,
    Epsilon,
    Flat,
    Gamma,
    Rule,
    Square,
    ZPlus,
)

CONVOLUTIONS = frozenset(overloads("convolution"))
PRODUCTS = frozenset(overloads("matmul", "bmm", "mm", "addmm"))
_SHAPES = frozenset(SHAPE_ONLY)
PLAIN = Epsilon()
LINEAR = CONVOLUTIONS | PRODUCTS | frozenset(overloads("linear"))


@dataclass(frozen=True, kw_only=True)
class Composite:
    """Which rule goes where."""

    convolution: Rule = PLAIN
    dense: Rule = PLAIN
    first: Rule | None = None
    """For the linear maps that no other one precedes."""
    first_on: Literal["linear maps", "convolutions"] = "linear maps"
    """What counts as such a map."""
    sums: Literal["value", "plus"] = "value"
    gates: Literal["nothing", "half"] = "nothing"
    norms: Literal["fixed scale", "pass"] = "fixed scale"
    stabiliser: float = STABILISER
    """Added to the denominators of everything but linear maps, with their sign."""


def composite(
    name: str,
    *,
    epsilon: float = STABILISER,
    gamma: float = 0.25,
    bounds: tuple[float | tuple[float, ...], float | tuple[float, ...]] | None = None,
) -> Composite:
    """A composite by name; those that begin with "epsilon" are named and made as in zennit.

    Args:
        name: one of ``COMPOSITES``.
        epsilon: of the epsilon rule.
        gamma: of the gamma rule.
        bounds: lowest and highest input, for z^B: "epsilon-gamma-box" needs them, "deep-taylor" takes w^2 without.

    Raises:
        UsageError: for an unknown name, or bounds that lack.
    """
    dense = Epsilon(epsilon)
    box = Box(*bounds) if bounds is not None else None
    if name == "epsilon-gamma-box" and box is None:
        raise UsageError(
            "MT331", "the rule z^B of 'epsilon-gamma-box' needs the bounds of the inputs", fix="give bounds"
        )
    made: dict[str, Composite] = {
        "zero": Composite(convolution=Epsilon(0.0), dense=Epsilon(0.0), stabiliser=0.0),
        "epsilon": Composite(convolution=dense, dense=dense),
        "epsilon-plus": Composite(convolution=ZPlus, dense=dense),
        "epsilon-plus-flat": Composite(convolution=ZPlus, dense=dense, first=Flat()),
        "epsilon-alpha2-beta1": Composite(convolution=AlphaBeta(2, 1), dense=dense),
        "epsilon-alpha2-beta1-flat": Composite(convolution=AlphaBeta(2, 1), dense=dense, first=Flat()),
        "epsilon-gamma-box": Composite(
            convolution=Gamma(gamma), dense=dense, first=box, first_on="convolutions"
        ),
        "deep-taylor": Composite(
            convolution=AlphaBeta(1, 0, bias=False),
            dense=AlphaBeta(1, 0, bias=False),
            first=box or Square(),
            sums="plus",
            norms="pass",
        ),
        "attention": Composite(convolution=Gamma(gamma), dense=dense, gates="half", norms="pass"),
    }
    if name not in made:
        raise UsageError(
            "MT331",
            f"there is no composite '{name}'",
            fix=nearest(name, COMPOSITES) or f"known: {', '.join(COMPOSITES)}",
        )
    return made[name]


COMPOSITES = (
    "zero", "epsilon", "epsilon-plus", "epsilon-plus-flat", "epsilon-alpha2-beta1", "epsilon-alpha2-beta1-flat",
    "epsilon-gamma-box", "deep-taylor", "attention",
)  # fmt: skip


@dataclass(frozen=True, repr=False)
class Relevance(Domain):
    """The domain; rules are in :mod:`microtome.interpret.relevance_operations`."""

    name: ClassVar[str] = "relevance"
    composite: Composite = Composite()


@dataclass(eq=False)
class Ledger:
    """State of one walk.

    Attributes:
        first: the linear maps that get the composite's first rule.
        readers: how many operations and outputs read a node.
        dependent: nodes that depend on where the walk ends.
        goals: where it ends.
        merged: linear maps whose batch-norm was passed already: scale, shift and the result.
        absorbed: what was lost at each operation, [] float64; not kept when None.
    """

    first: frozenset[Node]
    readers: Mapping[Node, int]
    dependent: Collection[Node]
    goals: Collection[Node]
    merged: dict[Node, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    absorbed: dict[Node, Tensor] | None = None


def dependents(graph: Graph, starts: Iterable[Node]) -> set[Node]:
    """The nodes whose value (not shape alone) depends on these."""
    return graph.reached(starts, lambda node: node.target not in _SHAPES)


def is_linear_map(node: Node, dependent: Collection[Node]) -> bool:
    """Whether the operation is a linear map with fixed weights of what depends on the input."""
    if node.target not in LINEAR:
        return False
    if node.target in PRODUCTS:
        return sum(operand in dependent for operand in node.operands[-2:]) == 1
    return [operand for operand in node.operands if operand in dependent] == [node.operands[0]]


def first_maps(
    graph: Graph, dependent: Collection[Node], goals: Collection[Node], kinds: Collection[Any] = LINEAR
) -> frozenset[Node]:
    """The linear maps (of these operations) with no other one between them and the goals."""
    found: set[Node] = set()
    behind: set[Node] = set()
    for node in graph.nodes:
        if node not in dependent or node in goals:
            continue
        if any(operand in behind for operand in node.operands):
            behind.add(node)
        elif node.target in kinds and is_linear_map(node, dependent):
            found.add(node)
            behind.add(node)
    return frozenset(found)


def rule_for(at: At) -> Rule:
    """The composite's rule at a linear map."""
    made: Composite = at.domain.composite
    ledger: Ledger = at.state
    if at.node in ledger.first and made.first is not None:
        return made.first
    return made.convolution if at.node.target in CONVOLUTIONS else made.dense
