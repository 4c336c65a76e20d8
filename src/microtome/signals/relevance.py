"""Relevance, changed gradients and full gradients as signals: what a leaf of the room explain asks for.

All are read off the program of the subject, so that they speak of operations and not of modules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from microtome.errors import Refusal
from microtome.interpret import Domain, backward, requirements
from microtome.interpret.bias_gradients import BiasGradients, full_gradient, saliency
from microtome.interpret.gates import (
    DeconvNet,
    ExcitationPullback,
    Gradients,
    GuidedBackprop,
    rectifiers,
)
from microtome.interpret.relevance import Relevance, composite, propagate
from microtome.signals.expression import Signal, derive
from microtome.signals.interpretation import Interpretation, Scene, interpreted

Gate = Literal["gradient", "guided", "deconvnet", "excitation"]


def _sum(value: Tensor) -> Tensor:
    return value.double().reshape(len(value), -1).sum(1)


@dataclass(frozen=True, kw_only=True)
class Propagated(Interpretation):
    """LRP: what the score leaves at each input, [n, ...], what was put in and what arrived, [n] each.

    What is put in is the output times the slope of the score in question: the logit itself for a logit.
    """

    composite: str = "epsilon-plus"
    epsilon: float = 1e-6
    gamma: float = 0.25

    def read(self, scene: Scene) -> dict[str, Tensor]:
        """Keys "map", "score" and "total"."""
        made = composite(self.composite, epsilon=self.epsilon, gamma=self.gamma, bounds=scene.subject.bounds)
        domain, places = Relevance(made), list(scene.places)
        keep, shapes = requirements(scene.graph, domain, [scene.graph.output], places)
        run = scene.run(keep=keep, shapes=shapes)
        seed = run.output * scene.slope(run.output)
        found, _ = propagate(run, domain, seed, places)
        seen = scene.site(found)
        return {"map": seen, "score": _sum(seed), "total": _sum(seen)}


@dataclass(frozen=True, kw_only=True)
class Pulled(Interpretation):
    """A gradient of the score, [n, ...], through ReLUs that let back something else.

    ``temperature`` is that of the soft gates of "excitation", in units of the pre-activations.
    """

    gate: Gate = "gradient"
    temperature: float = 0.3

    def domain(self) -> Domain:
        """The meaning of a ReLU."""
        if self.gate == "excitation":
            return ExcitationPullback(self.temperature)
        return {"gradient": Gradients, "guided": GuidedBackprop, "deconvnet": DeconvNet}[self.gate]()

    def read(self, scene: Scene) -> dict[str, Tensor]:
        """Key "map"."""
        if self.gate != "gradient" and not rectifiers(scene.graph):
            raise Refusal("the network has no ReLU whose gates could be changed")
        domain, places = self.domain(), list(scene.places)
        keep, shapes = requirements(scene.graph, domain, [scene.graph.output], places)
        run = scene.run(keep=keep, shapes=shapes)
        found = backward(run, domain, {scene.graph.output: scene.slope(run.output)}, to=places)
        return {"map": scene.site(found)}


@dataclass(frozen=True)
class Complete(Interpretation):
    """FullGrad: input and biases, with the map of both.

    Keys "map" ([n, h, w] for images; |x * slope| [n, ...] else, for there biases have no place), "inputs" and
    "biases" ([n] their parts), "score" ([n] the output times the slope of the score: what they should add up to).
    """

    memory = 6.0

    def read(self, scene: Scene) -> dict[str, Tensor]:
        """All four."""
        domain, places = BiasGradients(), dict(scene.places)
        keep, shapes = requirements(scene.graph, domain, [scene.graph.output], places)
        run = scene.run(keep={*keep, *scene.graph.inputs}, shapes=shapes)
        seed = scene.slope(run.output)
        x = scene.site(places)
        pictures = x.dim() == 4 and len(places) == 1
        found = full_gradient(run, seed, places, only=lambda part: pictures and part.dim() == 4)
        own = (x * scene.site(found.slope)).abs()
        seen = saliency(found, places, (x.shape[2], x.shape[3])) if pictures else own
        return {"map": seen, "inputs": found.inputs, "biases": found.biases, "score": _sum(run.output * seed)}


def _part(value: dict[str, Any], *, key: str) -> Any:
    return value[key]


def part(interpretation: Interpretation, of: Signal, key: str) -> Signal:
    """One of the things an interpretation reads."""
    return derive(_part, interpreted(interpretation, of), key=key, name=key)


__all__ = ["Complete", "Gate", "Propagated", "Pulled", "part"]
