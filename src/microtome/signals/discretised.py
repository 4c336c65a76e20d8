"""Search of a grid of inputs with bounds: no point of it changes the answer, or here is one that does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from microtome.errors import Refusal
from microtome.interpret.interval import Interval
from microtome.signals.bounds import (
    METHODS,
    Method,
    answer_of,
    answered,
    margin_bound,
    slopes,
    taken,
)
from microtome.signals.interpretation import Interpretation, Scene

MOST_POINTS = 1 << 17
CHUNK = 1024


@dataclass(frozen=True)
class Discretised(Interpretation):
    """Exhaustive search of a grid by boxes: those whose bound on the margin is positive are not looked into.

    Free are the ``free`` numbers of the input by which the margin changes most; each takes ``levels`` evenly spaced
    values from x - radius to x + radius, cut to the bounds; the rest stays. Boxes of the grid are bounded, those
    left open are halved along the input that moves the margin most, layer by layer, down to single points.

    Keys "safe" ([n] bool), "witness" ([n, ...] a point with another answer; the input where there is none),
    "boxes" and "points" ([n] bounded and evaluated), "at once" ([n] bool: safe by the first bound), "free" and
    "grid" ([n, free] positions, [n, free, levels] values).
    """

    radius: float
    free: int = 4
    levels: int = 3
    method: Method = "interval"
    cost = 200.0
    memory = 8.0

    def __post_init__(self) -> None:
        if self.method not in METHODS or self.free < 1 or self.levels < 2 or self.radius <= 0:
            raise Refusal(
                "a grid has 1 free input and 2 levels at least, a radius above 0, and a known bound"
            )
        if self.levels**self.free > MOST_POINTS:
            raise Refusal(f"the grid has more than {MOST_POINTS} points: fewer free inputs or levels")

    def read(self, scene: Scene) -> dict[str, Tensor]:
        """All of them."""
        outputs = answered(scene)
        classes = answer_of(scene, outputs)
        if len(scene.places) != 1 or next(iter(scene.places)).kind != "input":
            raise Refusal("the grid is one of real-valued inputs, and the network takes token ids or several")
        (x,) = scene.places.values()
        grid = _Grid(scene, x.flatten(1), classes, *self._grid(scene, x.flatten(1), outputs), self.method)
        return grid.search()

    def _grid(self, scene: Scene, x: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positions [n, f], values [n, f, levels], slopes of the margin [n, f]."""
        flat = outputs.reshape(len(outputs), -1)
        best = flat.argsort(dim=1, descending=True, stable=True)[:, :2]
        found = [s.flatten(1) for s in slopes(scene, best)] if outputs.dim() == 2 else None
        if found is None:
            raise Refusal("the grid is searched for outputs [n, classes]")
        slope = (
            found[0] - found[1] if len(found) > 1 else found[0] * (2 * answer_of(scene, outputs) - 1)[:, None]
        )
        free = slope.abs().argsort(dim=1, descending=True, stable=True)[:, : self.free]
        centre = x.gather(1, free)
        low, high = scene.subject.bounds or (-math.inf, math.inf)
        ends = [(centre + move).clamp(low, high) for move in (-self.radius, self.radius)]
        step = torch.arange(self.levels, dtype=x.dtype, device=x.device) / (self.levels - 1)
        values = ends[0][..., None] * (1 - step) + ends[1][..., None] * step
        return free, values, slope.gather(1, free)


class _Grid:
    """One search for all examples of a slice, each as if it were alone."""

    def __init__(
        self,
        scene: Scene,
        x: Tensor,
        classes: Tensor,
        free: Tensor,
        values: Tensor,
        slope: Tensor,
        method: Method,
    ) -> None:
        self.scene, self.x, self.classes = scene, x, classes
        self.free, self.values, self.slope, self.method = free, values, slope, method

    def search(self) -> dict[str, Tensor]:
        n, f, levels = self.values.shape
        device = self.x.device
        owner = torch.arange(n, device=device)
        low = torch.zeros(n, f, dtype=torch.long, device=device)
        high = torch.full_like(low, levels - 1)
        boxes, points = (torch.zeros(n, dtype=torch.long, device=device) for _ in range(2))
        witness, broken = self.x.clone(), torch.zeros(n, dtype=torch.bool, device=device)
        once = torch.zeros_like(broken)
        first = True
        while len(owner):
            single = (low == high).all(1)
            # The corner the slope points to is tried in every box: where there is a witness it is often there.
            corner = torch.where(self.slope[owner] > 0, low, high)
            tried, wrong = self._points(owner, corner)
            boxes += torch.bincount(owner[~single], minlength=n)
            points += torch.bincount(owner, minlength=n)
            for i in wrong.nonzero()[:, 0].flip(0).tolist():  # the first of each example stays
                witness[owner[i]] = tried[i]
                broken[owner[i]] = True
            open_ = ~single & ~broken[owner]
            owner, low, high = owner[open_], low[open_], high[open_]
            left = ~self._certain(owner, low, high)
            if first:
                once = ~broken
                once[owner[left]] = False
                first = False
            owner, low, high = owner[left], low[left], high[left]
            owner, low, high = self._halved(owner, low, high)
        shape = next(iter(self.scene.places.values())).shape
        return {
            "safe": ~broken, "witness": witness.reshape(shape), "boxes": boxes, "points": points,
            "at once": once, "free": self.free, "grid": self.values,
        }  # fmt: skip

    def _halved(self, owner: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        reach = self._value(owner, high) - self._value(owner, low)
        weight = torch.where(high > low, reach.abs() * self.slope[owner].abs(), -1.0)
        widest = weight.argmax(1, keepdim=True)
        middle = (low.gather(1, widest) + high.gather(1, widest)) // 2
        upper, lower = low.scatter(1, widest, middle + 1), high.scatter(1, widest, middle)
        # Both halves of a box side by side, so that the order does not depend on the other examples.
        return (
            owner.repeat_interleave(2),
            torch.stack([low, upper], 1).flatten(0, 1),
            torch.stack([lower, high], 1).flatten(0, 1),
        )

    def _value(self, owner: Tensor, level: Tensor) -> Tensor:
        """[m, f] the numbers at these levels."""
        return self.values[owner].gather(2, level[..., None])[..., 0]

    def _placed(self, owner: Tensor, level: Tensor) -> Tensor:
        """[m, d] inputs with the free numbers at these levels."""
        return self.x[owner].scatter(1, self.free[owner], self._value(owner, level))

    def _chunks(self, owner: Tensor) -> list[slice]:
        return [slice(i, i + CHUNK) for i in range(0, len(owner), CHUNK)]

    def _shaped(self, flat: Tensor) -> Tensor:
        (x,) = self.scene.places.values()
        return flat.reshape(len(flat), *x.shape[1:])

    def _points(self, owner: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """([m, d] points, [m] whether they are answered otherwise)."""
        moved = self._placed(owner, level)
        wrong: list[Any] = []
        for part in self._chunks(owner):
            scene = taken(self.scene, owner[part], self._shaped(moved[part]))
            wrong.append(answer_of(scene, scene.run().output) != self.classes[owner[part]])
        return moved, torch.cat(wrong)

    def _certain(self, owner: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """[m] whether no input of the box, on the grid or not, is answered otherwise."""
        found = [torch.zeros(0, dtype=torch.bool, device=owner.device)]
        for part in self._chunks(owner):
            some = owner[part]
            ends = [self._shaped(self._placed(some, level[part])) for level in (low, high)]
            scene = taken(self.scene, some, ends[0])
            (place,) = scene.places
            box = {place: Interval(torch.minimum(*ends), torch.maximum(*ends))}
            found.append(margin_bound(scene, self.classes[some], box, self.method) > 0)
        return torch.cat(found)


__all__ = ["Discretised"]
