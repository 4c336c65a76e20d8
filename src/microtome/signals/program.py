"""What a pass has to compute, ordered by world: compiled once a round from the signals that are wanted."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from microtome.signals.capture import (
    is_out_of_memory,
)
from microtome.signals.expression import HERE, SLICE_SOURCES, Signal, World

Deliver = Callable[[Signal, Any], None]
_OF_NO_WORLD = (*SLICE_SOURCES, "task", "feature_dimension")
PROFILE_FORWARDS = 9
"""One counted; four watched and four bare ones timed, the first of each for warming up."""


@dataclass(frozen=True)
class Failure:
    """Stands for a value that could not be computed; everything made of it fails with the same reason."""

    error: BaseException


EXPLAINING_FORWARDS = 100.0
"""Of a graph's edges: one each and those that judge; how many there are is not known before."""


@dataclass
class WorldPlan:
    """What one world has to provide."""

    layers: set[str] = field(default_factory=set)
    plain: set[Signal] = field(default_factory=set)
    """Sources that need no work of their own: outputs, inputs, task, feature_dimension, (node_)activation."""
    gradients: OrderedDict[Signal, list[Signal]] = field(default_factory=OrderedDict)
    """Scalar signal -> the gradient signals wanted of it."""
    curvature: OrderedDict[Signal, list[Signal]] = field(default_factory=OrderedDict)
    examples: list[Signal] = field(default_factory=list)
    across: list[Signal] = field(default_factory=list)
    interpreted: list[Signal] = field(default_factory=list)
    sensitivity: list[Signal] = field(default_factory=list)
    explanations: list[Signal] = field(default_factory=list)
    profile: Signal | None = None

    @property
    def forward(self) -> bool:
        """Whether an ordinary forward is needed."""
        sources = ("outputs", "activation", "node_activation", "inputs")
        return any(s.kind in sources for s in self.plain) or bool(self.gradients)

    def cost(self) -> float:
        """Forwards this world amounts to, by counting floating-point operations (a backward is two)."""
        total = 0.0
        if self.forward:
            total += 1.0
        for wanted in self.gradients.values():
            total += 2.0 if any(s.arguments[1] == "parameters" for s in wanted) else 1.0
        for wanted in self.curvature.values():
            total += 3.0 + 4.0 * sum(s.arguments[1].value.shape[0] for s in wanted)
        total += 3.0 * len(self.examples)
        for signal in self.across:
            inner = Program([signal.arguments[0]])
            total += signal.arguments[1].count * inner.cost()
        total += sum(signal.arguments[1].cost for signal in self.interpreted)
        total += sum(1.0 + 2.0 * signal.arguments[1] for signal in self.sensitivity)
        total += EXPLAINING_FORWARDS * len(self.explanations)
        return total + (PROFILE_FORWARDS if self.profile is not None else 0.0)


class Program:
    """The signals wanted in a pass, ordered by world; see the module's docstring.

    Args:
        wanted: signals whose values are to be delivered.
    """

    def __init__(self, wanted: Iterable[Signal]) -> None:
        order = tuple(dict.fromkeys(wanted))
        self.wanted = frozenset(order)
        self.worlds: OrderedDict[World, WorldPlan] = OrderedDict()
        self.dependents: dict[Signal, list[Signal]] = {}
        self.slice_sources: set[Signal] = set()
        seen: set[Signal] = set()
        for signal in order:
            self._add(signal, seen)
        # The clean world first: its failure is the subject's failure.
        if HERE in self.worlds:
            self.worlds.move_to_end(HERE, last=False)

    def cost(self) -> float:
        """Forwards a slice amounts to."""
        return sum(plan.cost() for plan in self.worlds.values()) + sum(
            _transform_cost(world) for world in self.worlds
        )

    @property
    def by_parameters(self) -> tuple[list[World], list[World]]:
        """(worlds at the network's own parameters, those at changed ones: equal changes next to each other)."""
        own = [world for world in self.worlds if not world.parameters]
        groups: dict[Any, list[World]] = {}
        for world in self.worlds:
            if world.parameters:
                groups.setdefault((id(world.subject), world.parameters), []).append(world)
        return own, [world for group in groups.values() for world in group]

    @property
    def differentiates(self) -> bool:
        """Whether any world needs a graph."""
        return any(p.gradients or p.examples or p.across or w.inputs for w, p in self.worlds.items())

    @property
    def differentiates_twice(self) -> bool:
        """Whether any world needs second derivatives."""
        return any(p.curvature for p in self.worlds.values())

    def _add(self, signal: Signal, seen: set[Signal]) -> None:
        if signal in seen:
            return
        seen.add(signal)
        if signal.kind == "derived":
            for parent in dict.fromkeys(signal.parents):
                self.dependents.setdefault(parent, []).append(signal)
                self._add(parent, seen)
            return
        if signal.kind in SLICE_SOURCES:
            self.slice_sources.add(signal)
            return
        plan = self.worlds.setdefault(signal.world, WorldPlan())
        if signal.kind == "gradient":
            plan.gradients.setdefault(signal.arguments[0], []).append(signal)
            plan.layers.update(layers_of(signal.arguments[0]))
            if signal.arguments[1] not in ("inputs", "parameters"):
                plan.layers.add(signal.arguments[1])
        elif signal.kind == "hvp":
            plan.curvature.setdefault(signal.arguments[0], []).append(signal)
        elif signal.kind == "example_gradients":
            plan.examples.append(signal)
        elif signal.kind == "across":
            plan.across.append(signal)
        elif signal.kind == "interpreted":
            plan.interpreted.append(signal)
        elif signal.kind == "sensitivity":
            plan.sensitivity.append(signal)
        elif signal.kind == "edge_explanations":
            plan.explanations.append(signal)
        elif signal.kind == "profile":
            plan.profile = signal
        else:
            plan.plain.add(signal)
            if signal.kind == "activation":
                plan.layers.add(signal.arguments[0])


def wait_for_each_other(signals: Iterable[Signal]) -> bool:
    """Whether something as large as an activation would be held until the network has other parameters."""
    sources = {s for signal in signals for s in signal.walk() if s.kind not in ("derived", *_OF_NO_WORLD)}
    if all(s.kind == "outputs" for s in sources):
        return False
    return len({(id(s.world.subject), s.world.parameters) for s in sources}) > 1


def layers_of(signal: Signal) -> set[str]:
    """Layers whose activations a signal is made of."""
    return {s.arguments[0] for s in signal.walk() if s.kind == "activation"}


def _transform_cost(world: World) -> float:
    return sum(float(getattr(t, "cost", 0.0)) for t in world.inputs)


class Board:
    """Values of one slice: what arrives is pushed to what waits for it and dropped when used up."""

    def __init__(self, program: Program, deliver: Deliver) -> None:
        self.program, self.deliver = program, deliver
        self.held: dict[Signal, Any] = {}
        self.uses: dict[Signal, int] = {}
        self.missing: dict[Signal, int] = {}

    def put(self, signal: Signal, value: Any) -> bool:
        """Take a value in; returns whether it is still waited for by something not yet computable."""
        if isinstance(value, Tensor) and value.requires_grad:
            value = value.detach()
        if signal in self.program.wanted:
            self.deliver(signal, value)
        dependents = self.program.dependents.get(signal, ())
        if not dependents:
            return False
        self.held[signal] = value
        self.uses[signal] = len(dependents)
        for dependent in dependents:
            missing = self.missing.get(dependent) or len(set(dependent.parents))
            self.missing[dependent] = missing - 1
            if missing == 1:
                self._compute(dependent)
        return signal in self.held

    def _compute(self, signal: Signal) -> None:
        held = self.held
        values = [held[a] if isinstance(a, Signal) else a for a in signal.arguments]
        result = _apply(signal, values)
        for parent in set(signal.parents):
            self.uses[parent] -= 1
            if self.uses[parent] == 0:
                del self.held[parent]
        del values
        self.put(signal, result)


def _apply(signal: Signal, values: list[Any]) -> Any:
    for value in values:
        if isinstance(value, Failure):
            return value
    assert signal.function is not None
    try:
        return signal.function(*values, **dict(signal.constants))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return Failure(error)
