"""Relevance: layer-wise relevance propagation (LRP) as a backward domain.

The score of an answer is handed from each result to its operands in proportion to what they contribute. A rule sits
on an *operation*, so functional activations, modules used twice and residual sums need no preparation:

- **linear maps** (convolutions, dense layers, a product with a constant matrix): the rule of the ``Composite`` for
  their kind (:mod:`microtome.interpret.relevance_rules`), another one for the first of them;
- **batch-norm** after a linear map that nobody else reads is part of it: weights, bias and result are the merged ones.
  Elsewhere it is scale and shift, by the epsilon rule; before a linear map with the epsilon rule that is the merged
  form too;
- **sums** (residual ones, means, pools, scatters): in proportion to the summands, R_a = a / (a + b) R_(a+b), or to
  their positive parts (``sums="plus"``), which cannot blow up where two summands cancel;
- **activations** pass relevance on; a maximum gives all to the largest; smooth functions that are no activations
  (exp, log) give x f'(x) / f(x) of it, and the rest is absorbed;
- **products** of two things that both depend on the input: a gate (sigmoid, softmax, 1 / norm) gets nothing and what
  it weighs gets all (Arras et al. 2019 for recurrent networks, Ali et al. 2022 for attention); with ``gates="half"``
  each factor gets half, and a softmax x (R - softmax * sum R) (AttnLRP, Achtibat et al. 2024). Two factors of which
  neither is a gate get half each;
- **layer-norm** and its kin: centred and scaled with the scale held fixed (Ali et al. 2022), or passed (AttnLRP).

Biases, constant summands and stabilisers absorb relevance. What each operation absorbed is recorded, and the sum of
the maps and of what was absorbed is what was put in, to rounding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from microtome.errors import UsageError, nearest
from microtome.interpret.graph import Graph, Node
from microtome.interpret.interpreter import (
    At,
    Domain,
    Run,
    backward,
    concrete,
    requirements,
    sources,
)
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
LINEAR = CONVOLUTIONS | PRODUCTS | frozenset(overloads("linear"))


@dataclass(frozen=True, kw_only=True)
class Composite:
    """Which rule goes where."""

    convolution: Rule = Epsilon()
    dense: Rule = Epsilon()
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
            "MT317", "the rule z^B of 'epsilon-gamma-box' needs the bounds of the inputs", fix="give bounds"
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
            "MT317",
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


@dataclass(frozen=True, eq=False, kw_only=True)
class RelevanceMap:
    """What arrived.

    Attributes:
        maps: relevance by input node (or embedding), shaped as its value.
        score: [n] what was put in at the output.
        total: [n] what arrived in all.
        absorbed: by operation, over the batch: relevance that went to biases, constants and stabilisers.
    """

    maps: Mapping[Node, Tensor]
    score: Tensor
    total: Tensor
    absorbed: Mapping[Node, float]

    @property
    def map(self) -> Tensor:
        """The map of the only input."""
        return next(iter(self.maps.values()))

    @property
    def conservation_error(self) -> Tensor:
        """[n] |total - score|: 0 where nothing was absorbed."""
        return (self.total - self.score).abs()


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


def propagate(
    run: Run, domain: Relevance, seed: Tensor, to: Iterable[Node], record: bool = False
) -> tuple[dict[Node, Tensor], Ledger]:
    """Hand ``seed`` (shaped as the output) back through a run that kept what ``requirements`` lists."""
    graph, goals = run.graph, set(to)
    readers = Counter(operand for node in graph.nodes for operand in node.operands)
    readers.update(output for output in graph.outputs if isinstance(output, Node))
    dependent = dependents(graph, goals)
    kinds = CONVOLUTIONS if domain.composite.first_on == "convolutions" else LINEAR
    special = domain.composite.first is not None
    ledger = Ledger(
        first=first_maps(graph, dependent, goals, kinds) if special else frozenset(),
        readers=readers,
        dependent=dependent,
        goals=goals,
        absorbed={} if record else None,
    )
    return backward(run, domain, {graph.output: seed}, to=goals, state=ledger), ledger


def relevance(
    graph: Graph,
    args: Sequence[Any],
    seed: Tensor | Callable[[Tensor], Tensor],
    composite: Composite,
    kwargs: Mapping[str, Any] | None = None,
    *,
    parameters: Mapping[str, Any] | None = None,
    to: Iterable[Node] | None = None,
) -> RelevanceMap:
    """Layer-wise relevance of every input, with what was lost on the way.

    Args:
        graph: a captured program whose first output is [n, ...].
        args: its arguments.
        seed: relevance of the outputs, or how to get it of them (see :func:`of_class`).
        composite: rules by kind of operation.
        kwargs: keyword arguments of the program.
        parameters: tensors that replace the model's own.
        to: nodes to end at; default the real inputs, or the embeddings of integer ones.

    Raises:
        SubjectError: MT310 for an operation without a rule.
    """
    from microtome.interpret import relevance_operations  # noqa: F401 - registers the rules

    domain = Relevance(composite)
    goals = list(to) if to is not None else list(sources(graph))
    keep, shapes = requirements(graph, domain, [graph.output], goals)
    with torch.no_grad():
        run = concrete(graph, args, kwargs, keep=keep, shapes=shapes, parameters=parameters)
        started = seed(run.output) if callable(seed) else seed
        maps, ledger = propagate(run, domain, started, goals, record=True)
    score = started.double().flatten(1).sum(1)
    arrived = [value.double().flatten(1).sum(1) for value in maps.values()]
    return RelevanceMap(
        maps=maps,
        score=score,
        total=torch.stack(arrived).sum(0) if arrived else torch.zeros_like(score),
        absorbed={node: float(lost) for node, lost in (ledger.absorbed or {}).items()},
    )


def of_class(classes: Tensor) -> Callable[[Tensor], Tensor]:
    """Relevance of outputs [n, k]: the logit of the class in question, nothing for the others."""

    def seed(outputs: Tensor) -> Tensor:
        chosen = torch.zeros_like(outputs)
        index = classes.to(outputs.device)[:, None]
        return chosen.scatter(1, index, outputs.gather(1, index))

    return seed


def rule_for(at: At) -> Rule:
    """The composite's rule at a linear map."""
    made: Composite = at.domain.composite
    ledger: Ledger = at.state
    if at.node in ledger.first and made.first is not None:
        return made.first
    return made.convolution if at.node.target in CONVOLUTIONS else made.dense
