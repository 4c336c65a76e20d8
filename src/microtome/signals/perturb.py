"""Changes of inputs that test them: shifts, noise of a given strength, and gradient attacks.

A strength is a distance in the units of the inputs: the largest change of any number ("linf"), or the root
of the mean squared change over all numbers of an example ("l2"; the Euclidean distance is sqrt(d) times it).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from microtome.errors import Refusal
from microtome.signals import derive, gradient, labels, logits, predictions, task
from microtome.signals.expression import Signal, Site, Transform
from microtome.signals.noise import row_counters, row_normal, row_uniform, wide
from microtome.task import Task

Norm = Literal["linf", "l2"]
NORMS = ("linf", "l2")


@dataclass(frozen=True)
class Shift(Transform):
    """Images moved by whole pixels; what enters is zero, the nearest edge, or what left on the other side.

    Args:
        dx, dy: pixels to the right and down.
        padding: "zeros", "edge" or "wrap".
    """

    dx: int
    dy: int
    padding: str = "edge"

    def apply(self, x: Tensor, site: Site) -> Tensor:
        """[n, c, h, w] -> the same shape."""
        h, w = x.shape[-2:]
        down = torch.arange(h, device=x.device) - self.dy
        across = torch.arange(w, device=x.device) - self.dx
        if self.padding == "wrap":
            return x[..., down % h, :][..., across % w]
        moved = x[..., down.clamp(0, h - 1), :][..., across.clamp(0, w - 1)]
        if self.padding == "edge":
            return moved
        inside = ((down >= 0) & (down < h))[:, None] & ((across >= 0) & (across < w))
        return torch.where(inside, moved, torch.zeros_like(moved))


@dataclass(frozen=True)
class Noise(Transform):
    """A step of full strength in a random direction: random signs ("linf") or a normal direction ("l2")."""

    strength: float
    norm: Norm = "linf"
    seed: int = 0

    def apply(self, x: Tensor, site: Site) -> Tensor:
        """[n, ...] -> the same shape, inside the bounds; depends on the example ids alone."""
        counters = _counters(x, site)
        if self.norm == "linf":
            direction = (row_uniform(counters, self.seed) < 0.5).to(x.dtype) * 2 - 1
        else:
            direction = row_normal(counters, self.seed).to(x.dtype)
        return _inside(x + _step(direction.reshape(x.shape), self.strength, self.norm), site)


@dataclass(frozen=True)
class FGSM(Transform):
    """One step of full strength along the gradient of the loss (Goodfellow, Shlens & Szegedy 2015)."""

    strength: float
    norm: Norm = "linf"
    cost: float = field(default=2.0, init=False, compare=False, repr=False)

    def apply(self, x: Tensor, site: Site) -> Tensor:
        """[n, ...] -> the same shape, inside the bounds."""
        slope = site.ask(gradient(attacked_loss()), x)
        return _inside(x + _step(slope, self.strength, self.norm), site)


@dataclass(frozen=True)
class PGD(Transform):
    """Projected gradient ascent on the loss through a ladder of strengths (Madry et al. 2018).

    At each strength ``steps`` steps of ``pace * strength / steps``, each projected onto the ball and the
    bounds. The first ball is entered at a random point, each larger one where the smaller was left. An
    example is attacked until its answer is wrong and left there, so ladders cost little more than their
    last strengths, and the distance of the result from the input tells the strength that was needed.

    Args:
        strengths: ascending.
        stop: leave an example alone once its answer is wrong; otherwise all steps are taken.
    """

    strengths: tuple[float, ...]
    steps: int = 10
    norm: Norm = "linf"
    pace: float = 2.5
    seed: int = 0
    stop: bool = True
    cost: float = field(default=0.0, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        # What it costs when nothing is broken early.
        object.__setattr__(self, "cost", 2.0 * self.steps * len(self.strengths))

    def apply(self, x: Tensor, site: Site) -> Tensor:
        """[n, ...] -> the same shape, inside the bounds."""
        device = site.rows.device
        going = torch.arange(len(x), device=device)
        if self.stop:
            right = site.ask(answered_right(), x) > 0
            going = going[right.to(device)]
        moved = x.clone()
        here = going.to(x.device)
        moved[here] = self._start(x, site)[here]
        for strength in self.strengths:
            for _ in range(self.steps):
                if len(going) == 0:
                    return moved
                seen = site.ask(_slope_and_answer(), moved[here], going)
                if self.stop:
                    unbroken = seen[:, -1] > 0
                    going, seen = going[unbroken.to(device)], seen[unbroken]
                    here = going.to(x.device)
                origin = x[here]
                slope = seen[:, :-1].reshape(origin.shape)
                change = moved[here] + _step(slope, self.pace * strength / self.steps, self.norm) - origin
                moved[here] = _inside(origin + _ball(change, strength, self.norm), site)
        return moved

    def _start(self, x: Tensor, site: Site) -> Tensor:
        counters = _counters(x, site)
        first = self.strengths[0]
        if self.norm == "linf":
            change = (2 * row_uniform(counters, self.seed) - 1).to(x.dtype).reshape(x.shape) * first
        else:
            direction = row_normal(counters, self.seed).to(x.dtype).reshape(x.shape)
            radius = row_uniform(site.rows.to(x.device), self.seed, 7).to(x.dtype)
            change = _step(direction, first, "l2") * radius.reshape(-1, *[1] * (x.dim() - 1))
        return _inside(x + change, site)


def attacked_loss() -> Signal:
    """[n] cross-entropy in float64: in float32 it has no slope left once a probability rounds to 1."""
    return derive(_attacked_loss, logits, labels, task, name="attacked_loss")


def _attacked_loss(logits: Tensor, labels: Tensor, task: Task) -> Tensor:
    return task.loss(wide(logits), labels)


def answered_right() -> Signal:
    """[n] 1.0 where the answer is the label."""
    return derive(_answered_right, predictions, labels, name="answered_right")


def _answered_right(predictions: Tensor, labels: Tensor) -> Tensor:
    return (predictions == labels).to(torch.float32)


def distance(x: Tensor, changed: Tensor, norm: str) -> Tensor:
    """[n] strength of a change, as this module measures it; for :func:`derive` over ``inputs``."""
    change = wide(changed - x).flatten(1)
    return change.abs().amax(1) if norm == "linf" else change.square().mean(1).sqrt()


def _slope_and_answer() -> Signal:
    """[n, d + 1]: what a step needs of the model, from one forward."""
    return derive(_beside, gradient(attacked_loss()), answered_right(), name="slope_and_answer")


def _beside(slope: Tensor, right: Tensor) -> Tensor:
    if len(slope) != len(right):
        raise Refusal("some examples have no label, or several answers")
    return torch.cat([slope.flatten(1), right.to(slope.dtype)[:, None]], dim=1)


def _counters(x: Tensor, site: Site) -> Tensor:
    return row_counters(site.rows.to(x.device), x[0].numel()) if len(x) else x.flatten(1).long()


def _step(direction: Tensor, size: float, norm: str) -> Tensor:
    """A change of this size along a direction; none where the direction is zero."""
    if norm == "linf":
        return direction.sign() * size
    flat = wide(direction).flatten(1)
    # Divided by its largest entry first: the squares of a tiny gradient would vanish.
    flat = flat / flat.abs().amax(1, keepdim=True).clamp_min(torch.finfo(flat.dtype).tiny)
    length = flat.square().mean(1, keepdim=True).sqrt().clamp_min(torch.finfo(flat.dtype).tiny)
    return (flat / length * size).to(direction.dtype).reshape(direction.shape)


def _ball(change: Tensor, size: float, norm: str) -> Tensor:
    """The nearest change that is no larger than this."""
    if norm == "linf":
        return change.clamp(-size, size)
    flat = wide(change).flatten(1)
    length = flat.square().mean(1, keepdim=True).sqrt()
    scale = (size / length.clamp_min(torch.finfo(flat.dtype).tiny)).clamp_max(1.0)
    return (flat * scale).to(change.dtype).reshape(change.shape)


def _inside(x: Tensor, site: Site) -> Tensor:
    return x if site.bounds is None else x.clamp(*site.bounds)
