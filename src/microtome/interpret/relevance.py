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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from microtome.interpret import relevance_operations  # noqa: F401 - registers the rules
from microtome.interpret.graph import Graph, Node
from microtome.interpret.interpreter import Run, backward, concrete, requirements, sources
from microtome.interpret.relevance_domain import (
    COMPOSITES,
    CONVOLUTIONS,
    LINEAR,
    Composite,
    Ledger,
    Relevance,
    composite,
    dependents,
    first_maps,
)

__all__ = [
    "COMPOSITES",
    "Composite",
    "Relevance",
    "RelevanceMap",
    "composite",
    "of_class",
    "propagate",
    "relevance",
]


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
