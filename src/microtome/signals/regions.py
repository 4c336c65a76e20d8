"""Linear regions as signals: boundaries that segments cross, distances to the nearest one, the equivalent tree.

They are read off the program in float64, and hold for networks of linear maps and piecewise-linear operations alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from microtome.errors import Refusal, SubjectError
from microtome.interpret import Graph
from microtome.interpret.cost import costs_of, shapes_only
from microtome.interpret.crossings import code, line_crossings
from microtome.interpret.decision_tree import DecisionTree
from microtome.interpret.interpreter import forward
from microtome.interpret.patterns import (
    as_double,
    boundary_distance,
    doubled,
    only_input,
    patterns_at,
    switches,
    widened,
)
from microtome.signals.expression import Constant, derive
from microtome.signals.interpretation import Interpretation, Scene, interpreted
from microtome.subject import Subject

WORK = 5e9
"""Units times multiply-adds of a forward up to which whole ways are walked."""
HELD = 1 << 27
"""Numbers that a program may hold when it is run for every unit vector of the input at once."""


def piecewise_program(subject: Subject) -> Graph:
    """The program, when it has linear regions.

    Raises:
        Refusal: when it has none; names the operation that is in the way.
    """
    graph = subject.graph
    try:
        only_input(graph)
        found = switches(graph)
    except SubjectError as error:
        raise Refusal(str(error)) from error
    if not found:
        raise Refusal("the network is linear: it has one region and no boundaries")
    if not graph.dynamic:
        raise Refusal("the program takes one size of batch only: " + "; ".join(graph.notes))
    return graph


def matrices_fit(graph: Graph) -> bool:
    """Whether the slopes of all units by all numbers of an input can be had: d + 1 times all activations."""
    sizes = [math.prod(s for s in node.shape or () if isinstance(s, int)) for node in graph.operations]
    place = only_input(graph).shape or ()
    return (math.prod(s for s in place if isinstance(s, int)) + 1) * sum(sizes) <= HELD


def affordable_share(graph: Graph) -> float:
    """Share of a way that is walked in seconds: the boundaries on it grow with the units, each costs a forward."""
    shapes = shapes_only(graph)
    units = sum(math.prod(s for s in node.shape or () if isinstance(s, int)) for node in switches(graph))
    products = sum(cost.flops for cost in costs_of(graph, shapes)) / 2 / shapes[graph.inputs[0]].shape[0]
    return min(1.0, WORK / max(units * products, 1.0))


def _place(scene: Scene) -> Tensor:
    if len(scene.places) != 1 or next(iter(scene.places)).kind != "input":
        raise Refusal("linear regions are regions of one real-valued input")
    return next(iter(scene.places.values()))


@dataclass(frozen=True)
class Crossed(Interpretation):
    """[n, kinds] boundaries on the straight ways from ``starts`` to ``ends``, [n, kinds, ...] each, of the rows."""

    starts: Constant
    ends: Constant
    cost = 200.0
    memory = 8.0

    def read(self, scene: Scene) -> Tensor:
        """Counts as float64."""
        x, rows = _place(scene), scene.batch.rows
        ways = (self.starts.for_rows(rows), self.ends.for_rows(rows))
        start, end = (way.to(x.device).reshape(-1, *x.shape[1:]) for way in ways)
        try:
            counts = line_crossings(doubled(scene.graph, scene.parameters), start, end).counts
        except SubjectError as error:
            raise Refusal(str(error)) from error
        return counts.double().reshape(len(x), -1)


@dataclass(frozen=True)
class Nearest(Interpretation):
    """[n] Euclidean distance to the nearest boundary; -1 where no unit ever changes."""

    cost = 100.0
    memory = 16.0

    def read(self, scene: Scene) -> Tensor:
        """As float64."""
        _place(scene)
        found, _ = boundary_distance(doubled(scene.graph, scene.parameters), scene.inputs)
        return torch.where(found.isinf(), -1.0, found)


@dataclass(frozen=True)
class AsTree(Interpretation):
    """Each example put through the equivalent decision tree.

    Keys "error" ([n] largest difference from the network, in float64), "code" ([n, questions] the answers: equal ones
    are one leaf) and "work" ([n] multiplications and additions a decision takes).
    """

    cost = 100.0
    memory = 16.0

    def read(self, scene: Scene) -> dict[str, Tensor]:
        """All three."""
        x = _place(scene)
        graph = doubled(scene.graph, scene.parameters)
        tree = DecisionTree.from_graph(graph)
        inputs = as_double(scene.inputs)
        run = forward(graph, inputs, targets=[graph.output], replace=widened(graph))
        out = run.values[graph.output]
        error = (tree(x) - out).abs().reshape(len(out), -1).amax(1)
        work = [tree.multiply_adds(leaf) for leaf in tree.leaves_of(x)]
        codes = code(patterns_at(graph, inputs), len(x))
        return {"error": error, "code": codes, "work": torch.tensor(work, dtype=torch.float64)}


def _key(found: dict[str, Any], *, key: str) -> Tensor:
    value: Tensor = found[key]
    return value


def as_tree(key: str) -> Any:
    """One of the things read off the tree, as a signal."""
    return derive(_key, interpreted(AsTree()), key=key, name=key)


__all__ = ["AsTree", "Crossed", "Nearest", "affordable_share", "as_tree", "matrices_fit", "piecewise_program"]
