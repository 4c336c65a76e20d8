"""Bounds on answers over a ball of inputs as signals: certified margins and radii, boxes of outputs.

A ball holds all inputs of which no number differs by more than the radius, cut to the subject's bounds (for token
ids it lies around the embedding). ``"interval"`` propagates ranges (IBP), ``"linear"`` linear functions (CROWN, met
with the intervals), ``"mixed"`` walks back once with linear functions through ranges (CROWN-IBP). A final linear
layer is joined with the difference of logits before ranges enter it, so that what two logits share cancels (Gowal
et al. 2018). Bounds hold for every input of the ball; where none is found (infinities in between) a lower bound is
-inf.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from microtome.errors import Refusal, SubjectError
from microtome.interpret import Graph, Node
from microtome.interpret.interval import (
    Interval,
    Intervals,
    Rounding,
    interval_bounds,
    interval_of,
    interval_run,
)
from microtome.interpret.linear_bounds import (
    Intermediate,
    forward_work,
    linear_bounds,
    linear_work,
    margins,
)
from microtome.interpret.operations import aten
from microtome.signals.expression import Signal, derive
from microtome.signals.interpretation import Interpretation, Scene, interpreted, make_scene
from microtome.subject import Subject

Method = Literal["interval", "mixed", "linear"]
METHODS: tuple[Method, ...] = ("interval", "mixed", "linear")
UNBOUNDED = ("MT314", "MT317")
"""Errors of the domains that say: no finite bound on this box."""
TOGETHER = ("MT315", "MT316")
"""Errors that say: these examples cannot be bounded in one go."""


def ball(scene: Scene, radius: float | Tensor) -> dict[Node, Interval]:
    """The box around every place, cut to the bounds; ``radius`` is a number or one an example [n]."""
    low, high = scene.subject.bounds or (None, None)
    boxes = {}
    for node, x in scene.places.items():
        reach = radius.to(x).reshape(-1, *[1] * (x.dim() - 1)) if isinstance(radius, Tensor) else radius
        boxes[node] = Interval.around(x, reach, low, high)
    return boxes


def specification(scene: Scene, outputs: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [n, s, k] and constants [n, 1] whose products with the outputs are margins of ``classes`` [n].

    All margins are positive exactly when the class is answered.

    Raises:
        Refusal: when the answers are not one class an example.
    """
    task = scene.subject.task
    if not task.categorical or outputs.dim() > 2 or len(outputs) != len(classes):
        raise Refusal("margins are known for outputs [n, classes], one answer an example")
    if task.single_output(outputs):
        sign = (2 * classes - 1).to(outputs.dtype)[:, None]
        return sign[:, None], -sign * (0.5 if task.probabilities else 0.0)
    if outputs.shape[-1] < 2:
        raise Refusal("with a single class there is no margin")
    zero = torch.zeros(len(classes), 1, dtype=outputs.dtype, device=outputs.device)
    return margins(classes, outputs.shape[1], outputs.dtype), zero


def interval_rows(
    graph: Graph,
    box: Mapping[Node, Interval],
    rows: Tensor,
    inputs: Mapping[Node, Any] | None = None,
    *,
    rounding: Rounding = "typical",
    parameters: Mapping[str, Any] | None = None,
    gradient: bool = False,
) -> Tensor:
    """[n, s] interval lower bounds of ``rows`` [n, s, k] times the outputs, joined with a last linear layer."""
    domain, last = Intervals(rounding=rounding), graph.output
    with torch.set_grad_enabled(gradient):
        joined = _last_linear(graph, box)
        if joined is None:
            out = interval_of(
                interval_run(
                    graph, box, inputs, rounding=rounding, parameters=parameters, targets=[last]
                ).output
            )
            lower, upper = (end.reshape(len(rows), -1) for end in (out.lower, out.upper))
            return _lower(domain, rows, Interval(lower, upper), None)
        run = interval_run(graph, box, inputs, rounding=rounding, parameters=parameters, targets=joined)
        operand, weight, *bias = (run.values[node] for node in joined)
        shift = rows @ bias[0] if bias else None
        size = rows.abs() @ weight.abs() if rounding != "none" else None
        return _lower(domain, rows @ weight, interval_of(operand), shift, size)


def _last_linear(graph: Graph, box: Mapping[Node, Interval]) -> list[Node] | None:
    """Operand, weight and bias of a linear layer at the end, when nothing but its operand depends on the box."""
    last = graph.output
    if last.target is not aten.linear.default or last in box or len(last.operands) < 2:
        return None
    reached = graph.reached(box)
    operand, *held = last.operands
    fits = operand in reached and not any(node in reached for node in held)
    return [operand, *held] if fits and operand.shape is not None and len(operand.shape) == 2 else None


def _lower(
    domain: Intervals, matrix: Tensor, x: Interval, shift: Tensor | None, size: Tensor | None = None
) -> Tensor:
    """[n, s] lower end of matrix [n, s, h] times x [n, h], plus a constant; ``size`` is that of its terms."""
    low = torch.einsum("nsh,nh->ns", matrix, x.center) - torch.einsum("nsh,nh->ns", matrix.abs(), x.radius)
    if shift is not None:
        low = low + shift
    if domain.rounding == "none":
        return low
    terms = torch.einsum("nsh,nh->ns", matrix.abs() if size is None else size, x.magnitude)
    terms = terms if shift is None else terms + shift.abs()
    low = low - 2 * domain.gamma(matrix.shape[-1], low.dtype) * terms
    return torch.nan_to_num(low, nan=-math.inf, neginf=-math.inf)


def lower_bounds(
    scene: Scene, box: Mapping[Node, Interval], rows: Tensor, method: Method, rounding: Rounding = "typical"
) -> Tensor:
    """[n, s] lower bounds of ``rows`` [n, s, k] times the outputs [n, k] for every input in the box."""
    graph, inputs = scene.graph, scene.inputs
    low = interval_rows(graph, box, rows, inputs, rounding=rounding, parameters=scene.parameters)
    if method == "interval" or not low.numel():
        return low
    try:
        found = linear_bounds(
            changed_graph(scene),
            box,
            inputs,
            specification=rows,
            lower_only=True,
            intermediate=_within(method),
        ).lower
    except SubjectError as error:
        alone = len(low) == 1
        if error.code not in UNBOUNDED and (alone or error.code not in TOGETHER):
            raise
        if alone:
            return low
        # One example without a bound must not cost the others theirs.
        parts = [torch.tensor([i], device=low.device) for i in range(len(low))]
        return torch.cat([
            lower_bounds(taken(scene, i), {n: Interval(b.lower[i], b.upper[i]) for n, b in box.items()},
                         rows[i], method)
            for i in parts
        ])  # fmt: skip
    return torch.maximum(low, torch.nan_to_num(found, nan=-math.inf, neginf=-math.inf))


def _within(method: Method) -> Intermediate:
    return "interval" if method == "mixed" else "crown"


def changed_graph(scene: Scene) -> Graph:
    """The program holding the scene's own parameters."""
    if not scene.parameters:
        return scene.graph
    return dataclasses.replace(scene.graph, state={**scene.graph.state, **scene.parameters})


def taken(scene: Scene, index: Tensor, places: Tensor | None = None) -> Scene:
    """The scene of some of its examples [m] (they may repeat), on other values of its place when given."""
    if len(scene.places) != 1 and places is not None:
        raise Refusal("the network has several inputs, and one is to be changed")
    batch = scene.batch.take(index.to(scene.batch.rows.device))
    if places is None and len(scene.places) == 1:
        places = next(iter(scene.places.values()))[index]
    return make_scene(scene.subject, batch, places, scene.parameters, scene.slope)


def answered(scene: Scene) -> Tensor:
    """[n, ...] the outputs of the program, of networks whose examples can be taken apart."""
    if not scene.batch.divisible:
        raise Refusal("bounds over a ball are taken example by example, which the nodes of a graph are not")
    out: Tensor = scene.run().output
    return out


def answer_of(scene: Scene, outputs: Tensor) -> Tensor:
    """[n] the class each example is answered by.

    Raises:
        Refusal: when the answers are not one class an example.
    """
    task = scene.subject.task
    if not task.categorical:
        raise Refusal(f"a {task.kind} task has no single predicted class")
    found = task.output_logits(outputs).argmax(1)
    if len(found) != len(scene.batch):
        raise Refusal("an example has several answers")
    return found


def label_of(scene: Scene) -> Tensor:
    """[n] the labels.

    Raises:
        Refusal: when there are none, or an example has none.
    """
    targets = scene.batch.targets
    if targets is None or not scene.subject.task.categorical:
        raise Refusal("the data has no class labels")
    found = scene.subject.task.aligned_targets(targets)
    if len(found) != len(scene.batch) or bool((found < 0).any()):
        raise Refusal("some examples have no label, or several answers")
    return found


def margin_bound(
    scene: Scene, classes: Tensor, box: Mapping[Node, Interval], method: Method, outputs: Tensor | None = None
) -> Tensor:
    """[n] lower bound of the output of ``classes`` minus the largest other one, for every input in the box."""
    rows, constant = specification(scene, answered(scene) if outputs is None else outputs, classes)
    return (lower_bounds(scene, box, rows, method) + constant).min(1).values


MOST_WORK = 1e13
"""Operations (FLOP) that linear bounds of all examples of an instrument may take by default: minutes on a few cores."""


def affordable(graph: Graph, most: float) -> bool:
    """Whether linear bounds of one example take no more than ``most`` operations.

    It is decided by the program alone, so that it is the same wherever and however it runs.
    """
    return linear_work(graph) <= most


def work_of(graph: Graph, method: Method, rows: int) -> float:
    """Operations that bounds on ``rows`` products of the outputs of one example take, about."""
    once = forward_work(graph)
    return {"interval": 6 * once, "mixed": (6 + rows) * once, "linear": linear_work(graph) + rows * once}[
        method
    ]


def left_out(subject: Subject, rows: int, most: float) -> tuple[str, ...]:
    """What a finding says where linear bounds would take too long; empty where they were taken."""
    if affordable(subject.graph, most / max(rows, 1)):
        return ()
    work = rows * linear_work(subject.graph)
    return (
        f"linear bounds are left out: they might take {work:.0e} operations, more than most_work = {most:.0e}; "
        "what is said of bounds is said of intervals",
    )


class _Costly(Interpretation):
    """Linear bounds walk back from every neuron whose sign is open: hundreds of forwards."""

    method: Method

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise Refusal(f"bounds are taken by {' or '.join(METHODS)}, not by {self.method!r}")
        object.__setattr__(self, "cost", {"interval": 6.0, "mixed": 12.0, "linear": 200.0}[self.method])
        object.__setattr__(self, "memory", {"interval": 6.0, "mixed": 24.0, "linear": 32.0}[self.method])


@dataclass(frozen=True)
class CertifiedMargin(_Costly):
    """[n] lower bound of the logit of the label minus the largest other one, over the ball."""

    radius: float
    method: Method = "linear"

    def read(self, scene: Scene) -> Tensor:
        """[n]; -inf where there is no bound."""
        return margin_bound(scene, label_of(scene), ball(scene, self.radius), self.method)


@dataclass(frozen=True)
class CertifiedRadius(_Costly):
    """[n] a radius within which no input is answered other than by the label; 0 for wrong answers.

    The radii are tried in ascending order as long as they are certified, then the gap to the first that is not is
    halved ``refinements`` times.
    """

    radii: tuple[float, ...]
    method: Method = "linear"
    refinements: int = 0
    most: float = math.inf
    """Operations that linear bounds of one example may take; beyond, intervals have to do."""

    def read(self, scene: Scene) -> Tensor:
        """[n], in the units of the inputs."""
        labels, outputs = label_of(scene), answered(scene)
        rows, constant = specification(scene, outputs, labels)
        values = outputs.reshape(len(outputs), -1)
        right = (torch.einsum("nsk,nk->ns", rows, values) + constant > 0).all(1)
        reach = torch.zeros(len(labels), dtype=torch.float64, device=outputs.device)
        fails = torch.full_like(reach, math.inf)
        going = right.nonzero()[:, 0]
        for radius in self.radii:
            held = self._holds(scene, labels, going, torch.full_like(reach[going], radius))
            reach[going[held]] = radius
            fails[going[~held]] = radius
            going = going[held]
        going = (right & torch.isfinite(fails)).nonzero()[:, 0]
        for _ in range(self.refinements):
            middle = (reach[going] + fails[going]) / 2
            held = self._holds(scene, labels, going, middle)
            reach[going[held]] = middle[held]
            fails[going[~held]] = middle[~held]
        return reach

    def _holds(self, scene: Scene, labels: Tensor, index: Tensor, radius: Tensor) -> Tensor:
        if not len(index):
            return torch.zeros(0, dtype=torch.bool, device=index.device)
        some = scene if len(index) == len(labels) else taken(scene, index)
        held = margin_bound(some, labels[index], ball(some, radius), "interval") > 0
        left = (~held).nonzero()[:, 0]
        if (
            self.method != "interval" and len(left) and affordable(scene.graph, self.most)
        ):  # only what the cheap bound leaves open
            rest = taken(some, left)
            held[left] = margin_bound(rest, labels[index[left]], ball(rest, radius[left]), self.method) > 0
        return held


@dataclass(frozen=True)
class OutputBounds(_Costly):
    """([n, ...], [n, ...]) below and above every output, over the ball."""

    radius: float
    method: Method = "linear"

    def read(self, scene: Scene) -> tuple[Tensor, Tensor]:
        """Lower and upper ends, shaped as the outputs."""
        answered(scene)
        box, graph = ball(scene, self.radius), changed_graph(scene)
        if self.method == "interval":
            found = interval_bounds(graph, box, scene.inputs)
        else:
            found = linear_bounds(graph, box, scene.inputs, intermediate=_within(self.method))
        return found.lower, found.upper


@dataclass(frozen=True)
class Widths(Interpretation):
    """How wide each output ranges over the ball, by interval, by linear bounds, and as reached: [n, j] each.

    Reached is the output at two corners: a step of the radius along the signs of its own gradient and against
    them. It is the whole range of a linear network, and never more than the range. Taken of the ``outputs`` [j]
    largest outputs of each example. Keys "interval", "linear" (absent without ``linear``), "reached".
    """

    radius: float
    outputs: int = 16
    linear: bool = True
    most: float = math.inf
    """Operations that linear bounds of one example may take; beyond, the widths are those by intervals."""
    cost = 200.0
    memory = 32.0

    def read(self, scene: Scene) -> dict[str, Tensor]:
        """All of them."""
        out = answered(scene)
        if out.dim() != 2 or len(scene.places) != 1:
            raise Refusal("widths are taken of outputs [n, k] of a network with one input")
        chosen = out.argsort(dim=1, descending=True, stable=True)[:, : self.outputs]
        box, graph = ball(scene, self.radius), changed_graph(scene)
        wide = interval_bounds(graph, box, scene.inputs, rounding="none").width
        found = {"interval": wide.gather(1, chosen)}
        if self.linear and affordable(graph, self.most):
            found["linear"] = linear_bounds(graph, box, scene.inputs).width.gather(1, chosen)
        elif self.linear:
            found["linear"] = found["interval"]
        (region,) = box.values()
        reached = []
        for column, slope in zip(chosen.T, slopes(scene, chosen), strict=True):
            low = torch.where(slope > 0, region.lower, region.upper)
            high = torch.where(slope > 0, region.upper, region.lower)
            ends = [self._at(scene, x).gather(1, column[:, None])[:, 0] for x in (low, high)]
            reached.append((ends[1] - ends[0]).abs())
        found["reached"] = torch.stack(reached, 1)
        return found

    @staticmethod
    def _at(scene: Scene, x: Tensor) -> Tensor:
        (place,) = scene.places
        out: Tensor = (
            dataclasses.replace(scene, inputs=_with(scene, place, x), places={place: x}).run().output
        )
        return out


def _with(scene: Scene, place: Node, x: Tensor) -> Mapping[Node, Any]:
    return {**scene.inputs, place: x} if place.kind == "input" else scene.inputs


def slopes(scene: Scene, columns: Tensor) -> list[Tensor]:
    """Gradients [n, ...] in the only place of the outputs in each of ``columns`` [n, j], one an example."""
    (place,) = scene.places
    leaf = scene.places[place].detach().clone().requires_grad_()
    with torch.enable_grad():
        moved = dataclasses.replace(scene, inputs=_with(scene, place, leaf), places={place: leaf})
        out = moved.run().output
        picked = out.gather(1, columns).sum(0)
        return [torch.autograd.grad(one, leaf, retain_graph=True)[0].detach() for one in picked]


def certified_margin(radius: float, method: Method = "linear") -> Signal:
    """[n] what the logit of the label exceeds the largest other one by, at least, anywhere in the ball."""
    return interpreted(CertifiedMargin(radius, method))


def certified_radius(
    radii: tuple[float, ...], method: Method = "linear", refinements: int = 0, most: float = math.inf
) -> Signal:
    """[n] a radius within which the right answer is certain; see :class:`CertifiedRadius`."""
    return interpreted(CertifiedRadius(radii, method, refinements, most))


def output_bounds(radius: float, method: Method = "linear") -> tuple[Signal, Signal]:
    """[n, ...] below and above the outputs anywhere in the ball."""
    both = interpreted(OutputBounds(radius, method))
    return derive(_end, both, index=0, name="lower"), derive(_end, both, index=1, name="upper")


def _end(value: tuple[Tensor, Tensor], *, index: int) -> Tensor:
    return value[index]


__all__ = [
    "METHODS",
    "MOST_WORK",
    "CertifiedMargin",
    "CertifiedRadius",
    "Method",
    "OutputBounds",
    "Widths",
    "affordable",
    "answer_of",
    "answered",
    "ball",
    "certified_margin",
    "certified_radius",
    "interval_rows",
    "left_out",
    "lower_bounds",
    "margin_bound",
    "output_bounds",
    "slopes",
    "specification",
    "taken",
    "work_of",
]
