"""What the classifier reads, one label an example, and layers narrowed to a bearable width."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from microtome.errors import Refusal
from microtome.signals import Constant, Signal, activation, derive, features, logits, targets, task
from microtome.signals.noise import row_uniform
from microtome.subject import Layer, Subject
from microtome.task import IGNORE, Task

WIDEST = 1024
"""Units a layer may have before statistics of unit pairs are taken on a fixed random projection of it."""


@dataclass(frozen=True)
class Readout:
    """The last linear layer and what it reads."""

    classifier: str
    layer: str
    """The representation it reads."""
    features: Signal
    """[n, d] what it reads, if the shapes tell the truth; check with the outputs."""
    weight: Tensor
    """[k, d] float64; one output for two classes becomes two opposite ones."""
    bias: Tensor
    """[k] float64."""

    def gap(self) -> Signal:
        """[n] relative distance of ``features @ weight.T + bias`` from the logits; 0 when they fit."""
        return derive(_readout_gap, self.features, logits, Constant(self.weight), Constant(self.bias))


def readout(subject: Subject) -> Readout | None:
    """Find the classifier, a linear layer with one output a class, and its input; None when there is none."""
    k = subject.classes or 0
    layers = subject.layers
    passing = tuple(x.name + "." for x in layers if x.kind == "message-passing")
    for at in range(len(layers) - 1, 0, -1):
        tensors = [subject.parameters[n].double() for n in layers[at].parameters if n in subject.parameters]
        weight = next((t for t in tensors if t.dim() == 2), None)
        if layers[at].kind != "linear" or weight is None:
            continue
        if layers[at].name.startswith(passing):
            return None  # its product is passed on to the neighbours: no node is read by it alone
        if weight.shape[0] != k and not (k == 2 and weight.shape[0] == 1):
            return None
        before = next((x for x in reversed(layers[:at]) if x.representation), None)
        if before is None or weight.shape[1] not in (before.units, before.elements):
            return None
        flat = weight.shape[1] == before.elements
        read = (
            derive(_flat, activation(before.name))
            if flat and len(before.shape) > 1
            else features(before.name)
        )
        bias = next((t for t in tensors if t.dim() == 1), torch.zeros_like(weight[:, 0]))
        if weight.shape[0] == 1:
            weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        return Readout(layers[at].name, before.name, read, weight, bias)
    return None


def _readout_gap(features: Tensor, logits: Tensor, weight: Constant, bias: Constant) -> Tensor:
    expected = features.double() @ weight.value.to(features.device).T + bias.value.to(features.device)
    gap = logits.double() - expected
    gap = gap - gap.mean(1, keepdim=True)  # a shift of all logits is no difference
    return gap.abs().amax(1) / (expected - expected.mean(1, keepdim=True)).abs().amax(1).clamp_min(1e-6)


def penultimate(subject: Subject) -> str:
    """The layer the classifier reads, or the last representation but one."""
    found = readout(subject)
    named = [layer.name for layer in subject.representations]
    return found.layer if found is not None and found.layer in named else named[max(len(named) - 2, 0)]


def _flat(activation: Tensor) -> Tensor:
    return activation.reshape(activation.shape[0], -1)


def example_labels() -> Signal:
    """[n] class of each example; refuses when some have none."""
    return derive(_example_labels, targets, task, name="example_labels")


def _example_labels(targets: Tensor, task: Task) -> Tensor:
    labels = task.aligned_targets(targets)
    if bool((labels == IGNORE).any()):
        raise Refusal("some examples have no label")
    return labels


def narrowed(layer: Layer, width: int = WIDEST) -> Signal:
    """[n, min(d, width)]: the layer's features, wider ones through a fixed random projection."""
    found = features(layer.name)
    return found if layer.units <= width else derive(_sketch, found, width=width)


def _sketch(features: Tensor, width: int) -> Tensor:
    """Count sketch: units add to ``width`` sums with random signs; inner products are kept on average."""
    place, sign = _hashes(features.shape[1], width)
    out = torch.zeros(features.shape[0], width, dtype=features.dtype, device=features.device)
    return out.index_add_(1, place.to(features.device), features * sign.to(features))


@lru_cache(maxsize=16)
def _hashes(units: int, width: int) -> tuple[Tensor, Tensor]:
    ids = torch.arange(units)
    return (row_uniform(ids, 0, 11) * width).long(), torch.where(row_uniform(ids, 0, 12) < 0.5, -1.0, 1.0)
