"""One backward walk of linear bounds: ``interpreter.backward``, with rows that examples and sides share.

Rows start as ``Early``: one for all examples, and one for below and above. Rules named in ``SHARED`` take them
as they are; at the first relaxation each example gets its own. Whatever other rule comes first, too.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from microtome.interpret.curves import CURVES
from microtome.interpret.graph import Graph, Node, substitute
from microtome.interpret.interpreter import At, missing_rule, shares_of
from microtome.interpret.linear_walk import Early, LinearBounds, Walk
from microtome.interpret.operations import SHAPE_ONLY, overloads

SHARED = frozenset(
    overloads(
        *("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze.dim", "squeeze.dims", "clone", "alias"),
        *("detach", "contiguous", "dropout", "linear", "convolution", "batch_norm", "neg", "mul.Scalar"),
        *("add.Tensor", "add.Scalar", "sub.Tensor", "sub.Scalar", "rsub.Scalar", "div.Scalar", "mean.dim"),
        *("adaptive_avg_pool2d", "_adaptive_avg_pool2d", "avg_pool2d", "transpose.int", "permute"),
    )
)
"""Rules that need no more of rows than that their first two dimensions stay."""


_ONE_SIDED = frozenset(overloads("linear", "convolution"))


@dataclass(eq=False)
class Descent:
    """Where walks go: the nodes between any target and the places of the box, in order from the end."""

    graph: Graph
    domain: LinearBounds
    goals: Collection[Node]
    tracked: frozenset[Node]
    order: tuple[Node, ...]

    @staticmethod
    def towards(graph: Graph, domain: LinearBounds, goals: Collection[Node]) -> Descent:
        """All nodes that depend on ``goals``."""
        shapes = frozenset(SHAPE_ONLY)
        tracked = frozenset(graph.reached(goals, lambda node: node.target not in shapes))
        order = tuple(node for node in reversed(graph.nodes) if node in tracked and node not in goals)
        return Descent(graph, domain, frozenset(goals), tracked, order)

    def walk(
        self,
        seeds: Mapping[Node, Early | Tensor],
        values: Mapping[Node, Any],
        shapes: Mapping[Node, Any],
        walk: Walk,
    ) -> dict[Node, Tensor]:
        """What arrives at the goals."""
        arrived: dict[Node, Any] = dict(seeds)
        for node in self.order:
            if node in arrived:
                self._spread(node, arrived.pop(node), values, shapes, arrived, walk)
        return {node: walk.unfolded(rows) for node, rows in arrived.items() if node in self.goals}

    def _spread(
        self,
        node: Node,
        rows: Any,
        values: Mapping[Node, Any],
        shapes: Mapping[Node, Any],
        arrived: dict[Node, Any],
        walk: Walk,
    ) -> None:
        operands = node.operands
        if node.target is operator.getitem:  # one of several results: its producer gets a tuple with gaps
            whole = list(arrived.get(operands[0]) or [None] * len(shapes[operands[0]]))
            index = node.args[1]
            rows = walk.unfolded(rows)
            whole[index] = rows if whole[index] is None else whole[index] + rows
            arrived[operands[0]] = tuple(whole)
            return
        positions = frozenset(i for i, operand in enumerate(operands) if operand in self.tracked)
        entry = self.domain.entry(node.target)
        if entry is None:
            raise missing_rule(node, self.domain)

        def look(operand: Node) -> Any:
            plain = entry.keep == "operands" or operand not in self.tracked
            return values[operand] if plain else shapes[operand]

        args = () if entry.keep == "nothing" else substitute(node.args, look)
        kwargs = {} if entry.keep == "nothing" else substitute(dict(node.kwargs), look)
        at = At(node, self.domain, walk, values[node] if entry.output else None, positions)
        if isinstance(rows, Early) and not (node.target in SHARED or _relaxes_early(node, walk, rows)):
            rows = walk.unfolded(rows)
        if isinstance(rows, Early):
            tracked = [operands[i] for i in sorted(positions)]
            sized = all(
                walk.counts_first(each, values[each] if each in values else shapes[each]) for each in tracked
            )
            if not sized or (node.target in _ONE_SIDED and len(tracked) > 1):
                rows = walk.unfolded(rows)
        shares = _applied(at, entry.rule, rows, args, kwargs)
        shares = shares_of(self.domain, node, shares, positions)
        for position, share in enumerate(shares):
            if share is not None and position in positions:
                operand = operands[position]
                arrived[operand] = _joined(walk, arrived[operand], share) if operand in arrived else share


def _relaxes_early(node: Node, walk: Walk, rows: Early) -> bool:
    """Relaxations of one number choose each example's rows themselves, where all take the same lines."""
    return (
        node.target in CURVES
        and walk.slopes is None
        and not (torch.is_grad_enabled() and rows.a.requires_grad)
    )


def _applied(at: At, rule: Callable[..., Any], rows: Any, args: Any, kwargs: Any) -> Any:
    if not isinstance(rows, Early) or at.node.target in CURVES:
        return rule(at, rows, *args, **kwargs)
    at.state.sharing = True
    try:
        shares: Any = rule(at, rows.a, *args, **kwargs)
    finally:
        at.state.sharing = False
    if isinstance(shares, Tensor):
        return Early(shares)
    return [None if share is None else Early(share) for share in shares]


def _joined(walk: Walk, first: Any, second: Any) -> Any:
    """What arrives from two consumers; of every example its own rows, if one of them has these."""
    if isinstance(first, Early) and isinstance(second, Early):
        return Early(first.a + second.a)
    return walk.unfolded(first) + walk.unfolded(second)


def exactly_ranged(graph: Graph, goals: Sequence[Node]) -> set[Node]:
    """Nodes whose intervals are already the exact range of every entry, so that no walk can tighten them.

    Entries of the box are independent; they stay so while each result reads one entry of its own. One linear map
    of independent entries is ranged exactly, and so is a function of one number of it.
    """
    independent, exact = set(goals), set(goals)
    for node in graph.operations:
        operands = node.operands
        if node in exact or not operands or any(operand in exact for operand in operands[1:]):
            continue
        if node.target in _SINGLE:
            if operands[0] in independent:
                independent.add(node)
            if operands[0] in exact:
                exact.add(node)
        elif node.target in _MIXING and operands[0] in independent:
            exact.add(node)
    return exact


_SINGLE = frozenset(CURVES) | frozenset(
    overloads(
        *("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze.dim", "squeeze.dims", "clone", "alias"),
        *("detach", "contiguous", "dropout", "permute", "transpose.int", "batch_norm", "neg", "mul.Scalar"),
        *("add.Scalar", "sub.Scalar", "div.Scalar"),
    )
)
_MIXING = frozenset(overloads("linear", "convolution", "mean.dim", "sum.dim_IntList", "avg_pool2d"))
