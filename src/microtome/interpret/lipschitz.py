"""Upper bounds on how much faster than the input an output can move: Lipschitz constants by composition.

``lipschitz(graph)`` walks the program once. Every value carries a number L such that, example by example, its change is
at most L times the change of the input, both in one norm (2, infinity or 1 over all entries). Linear layers multiply by
their operator norm, activations by their steepest slope, sums add up, concatenations join; linear layers that follow
each other without anything between are multiplied first, and a batch-norm is put into the convolution before it. The
result holds for all inputs up to rounding; it is loose where layers cannot all stretch the same direction.

Norms of convolutions (2) are bounded from above by the largest singular value of their transfer matrix over the
frequencies of a torus of the size of the padded image, of which the convolution is a part; ``power_iteration`` finds
the exact norm from below. Both stand in the table.

With ``box``, slopes are those that the ranges of the operands in the box allow, units that are off in all of it are
left out, and products of two values (attention) have a bound. Without it an operation that has no finite constant is
the error MT360.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from microtome.errors import SubjectError
from microtome.interpret import lipschitz_rules  # noqa: F401 - registers its rules
from microtome.interpret.gates import Gradients
from microtome.interpret.graph import Graph, Node
from microtome.interpret.interpreter import Run, backward, forward, requirements, sources
from microtome.interpret.interval import Interval, Intervals
from microtome.interpret.lipschitz_domain import NORMS, Lipschitz, Norm, Reach, Step
from microtome.interpret.patterns import as_double, doubled, widened


@dataclass(frozen=True, kw_only=True)
class Bound:
    """An upper bound of the first output's Lipschitz constant, and how it came about."""

    value: float
    norm: Norm
    steps: tuple[Step, ...]
    notes: tuple[str, ...] = field(default=())


def lipschitz(
    graph: Graph,
    norm: Norm = "2",
    *,
    box: Interval | None = None,
    inputs: Mapping[Node, Any] | None = None,
    parameters: Mapping[str, Tensor] | None = None,
    estimates: bool = True,
) -> Bound:
    """Bound the change of the first output by that of the one place where the input (or its embedding) enters.

    ``box`` is a box around one example [1, ...] for a bound that holds inside of it alone; then ``inputs`` gives the
    values of inputs that are not in it. ``estimates`` adds what power iteration finds to convolutions.

    Raises:
        SubjectError: MT360 for an operation without a finite constant; MT313 when the input enters at several places.
    """
    if norm not in NORMS:
        raise SubjectError("MT361", f"the norm is one of {', '.join(NORMS)}, not {norm!r}")
    graph.demand_one_type()
    graph = doubled(graph, parameters)
    places = sources(graph)
    if len(places) != 1:
        raise SubjectError(
            "MT313", f"the input enters at {len(places)} places: {[n.name for n in places]}",
            fix="ask about a network of one real-valued input",
        )  # fmt: skip
    (place,) = places
    ranges = _ranges(graph, place, box, inputs) if box is not None else {}
    domain = Lipschitz(norm=norm, ranges=ranges, estimates=estimates)
    shape = torch.Size([1 if isinstance(s, str) else s for s in place.shape or ()])
    start = Reach(
        shape, torch.float64, next(iter(graph.state.values())).device if graph.state else torch.device("cpu")
    )
    given = {node: _blank(node, inputs) for node in graph.inputs} | (
        {place: start} if place.kind == "input" else {}
    )
    replace: dict[Node, Any] = widened(graph) | ({} if place.kind == "input" else {place: lambda _: start})
    with torch.no_grad():
        found = forward(graph, given, domain, replace=replace, targets=[graph.output]).output
    if not isinstance(found, Reach):
        raise SubjectError("MT361", "the output does not depend on the input", fix="look at the network")
    value = found.bound(domain)
    return Bound(value=value, norm=norm, steps=tuple(domain.steps), notes=tuple(dict.fromkeys(domain.notes)))


def _blank(node: Node, inputs: Mapping[Node, Any] | None) -> Any:
    if inputs is not None and node in inputs:
        value = inputs[node]
        return (
            value[:1]
            if isinstance(value, Tensor) and node.shape and isinstance(node.shape[0], str)
            else value
        )
    return torch.zeros([1 if isinstance(s, str) else s for s in node.shape or ()], dtype=node.dtype)


def _ranges(
    graph: Graph, place: Node, box: Interval, inputs: Mapping[Node, Any] | None
) -> dict[Node, Interval]:
    given = as_double(inputs or {})
    wide = Interval(box.lower.double(), box.upper.double())
    values = {node: given.get(node) for node in graph.inputs} | (
        {place: wide} if place.kind == "input" else {}
    )
    replace = widened(graph) | ({} if place.kind == "input" else {place: lambda _: wide})
    run = forward(graph, values, Intervals(), replace=replace, keep="all")
    return {node: value for node, value in run.values.items() if isinstance(value, Interval)}


def jacobians(run: Run, places: Mapping[Node, Tensor], most: int = 64) -> Tensor:
    """[n, k, d] slopes of the outputs [n, ...] by the inputs, one walk back for each of k outputs.

    ``run`` kept what ``requirements`` of ``Gradients`` lists. Of more than ``most`` outputs the first are taken: a part
    of the matrix, whose norm is no larger.
    """
    graph, out = run.graph, run.output
    flat = out.reshape(len(out), -1)
    rows = []
    for k in range(min(flat.shape[1], most)):
        seed = torch.zeros_like(flat)
        seed[:, k] = 1
        arrived = backward(run, Gradients(), {graph.output: seed.reshape(out.shape)}, to=list(places))
        parts = [arrived.get(node, torch.zeros_like(x)).flatten(1) for node, x in places.items()]
        rows.append(torch.cat(parts, 1))
    return torch.stack(rows, 1)


def needed(graph: Graph, places: Mapping[Node, Tensor]) -> tuple[set[Node], set[Node]]:
    """What a run must keep for ``jacobians``: nodes, and nodes whose shapes are read."""
    return requirements(graph, Gradients(), [graph.output], list(places))


def matrix_norm(matrix: Tensor, norm: Norm) -> Tensor:
    """[n] operator norms of matrices [n, k, d]."""
    if norm == "2":
        return torch.linalg.matrix_norm(matrix, ord=2)
    return matrix.abs().sum(2 if norm == "inf" else 1).amax(1)


__all__ = ["Bound", "Norm", "Step", "jacobians", "lipschitz", "matrix_norm", "needed"]
