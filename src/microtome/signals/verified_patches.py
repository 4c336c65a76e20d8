"""What freezing a part of the input takes off the worst that a ball of inputs can do."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from microtome.errors import Refusal
from microtome.interpret.interval import Interval
from microtome.interpret.linear_bounds import margins
from microtome.signals.bounds import METHODS, Method, answered, lower_bounds, taken
from microtome.signals.interpretation import Interpretation, Scene

CHUNK = 512


@dataclass(frozen=True)
class VerifiedPatches(Interpretation):
    """[n, parts ...] drop of the bound on the worst margin over a ball when the patch of each part is frozen.

    The ball has a radius of ``share`` of the input range (of each example's own, when the subject has no bounds).
    The margin is that of the class in question over the largest other one; of a real output it is the output
    itself.

    Args:
        share: radius.
        grid: patches are the cells of a grid of this many by as many (or as many in a row, for other inputs), at
            most one a part.
        parts: what a part spans: 0 channels of a pixel, -1 features of a token, None one number.
        method: how the worst margin is bounded.
    """

    share: float
    grid: int = 8
    parts: int | None = None
    method: Method = "interval"
    cost = 400.0
    memory = 32.0

    def __post_init__(self) -> None:
        if self.method not in METHODS or self.grid < 1 or self.share <= 0:
            raise Refusal(f"the radius is above 0, the grid 1 at least, and the method one of {METHODS}")

    def read(self, scene: Scene) -> Tensor:
        """[n, parts ...], never negative."""
        outputs = answered(scene)
        rows = self._question(scene, outputs)
        if len(scene.places) != 1:
            raise Refusal("patches are frozen in networks with one input")
        (x,) = scene.places.values()
        cells = self._cells(x)
        frozen = torch.cat([
            torch.zeros(1, cells.numel(), dtype=torch.bool, device=x.device),
            torch.arange(int(cells.max()) + 1, device=x.device)[:, None] == cells.flatten(),
        ])  # fmt: skip
        worst = self._worst(scene, x, rows, frozen.reshape(-1, *self._spread(x, cells)))
        drop = (worst[:, 1:] - worst[:, :1]).clamp(min=0)
        return drop[:, cells.flatten()].reshape(len(x), *cells.shape)

    def _worst(self, scene: Scene, x: Tensor, rows: Tensor, frozen: Tensor) -> Tensor:
        """[n, masks] lower bound of the margin with the inputs in each mask frozen."""
        n, count = len(x), len(frozen)
        low, high = scene.subject.bounds or (None, None)
        flat = x.flatten(1)
        span = (
            (flat.amax(1) - flat.amin(1))
            if low is None or high is None
            else torch.full_like(flat[:, 0], high - low)
        )
        radius = (self.share * span).reshape(-1, *[1] * (x.dim() - 1))
        step = max(CHUNK // n, 1)
        found = []
        for start in range(0, count, step):
            masks = frozen[start : start + step]
            index = torch.arange(n, device=x.device).repeat_interleave(len(masks))
            reach = torch.where(masks[None], 0.0, radius[:, None]).flatten(0, 1)
            some = taken(scene, index)
            (place,) = some.places
            box = {place: Interval.around(some.places[place], reach, low, high)}
            bound = lower_bounds(some, box, rows[index], self.method).min(1).values
            found.append(bound.reshape(n, len(masks)))
        return torch.cat(found, 1)

    def _question(self, scene: Scene, outputs: Tensor) -> Tensor:
        """Rows [n, s, k] whose least product with the outputs is the margin in question."""
        slope, task = scene.slope(outputs).reshape(len(outputs), -1), scene.subject.task
        if task.single_output(outputs):
            # The score of the first class is constant 0, its margin the negated output.
            return torch.where(slope > 0, 1.0, -1.0).to(outputs.dtype)[:, None]
        if not task.categorical:
            return slope[:, None]
        if outputs.dim() > 2 and self.method != "interval":
            raise Refusal("several positions are bounded by intervals alone: method='interval'")
        at = slope.abs().argmax(1)
        classes = outputs.shape[-1] if outputs.dim() > 1 else outputs.numel()
        if outputs.dim() == 2:
            return margins(at, classes, outputs.dtype)
        # The logits of the explained position lie side by side; the rest of the outputs is not asked about.
        own = margins(at % classes, classes, outputs.dtype)
        placed = torch.zeros(
            len(outputs), classes - 1, slope.shape[1], dtype=outputs.dtype, device=outputs.device
        )
        where = (at - at % classes)[:, None] + torch.arange(classes, device=outputs.device)
        return placed.scatter(2, where[:, None].expand_as(own), own)

    def _cells(self, x: Tensor) -> Tensor:
        """Patch number of each part, shaped as the parts are."""
        if self.parts == 0 and x.dim() == 4:
            sides = [min(self.grid, size) for size in x.shape[2:]]
            down, across = (
                torch.arange(size, device=x.device) * side // size
                for size, side in zip(x.shape[2:], sides, strict=True)
            )
            return down[:, None] * sides[1] + across
        shape = list(x.shape[1:])
        if self.parts is not None:
            shape.pop(self.parts)
        size = math.prod(shape)
        return (torch.arange(size, device=x.device) * min(self.grid**2, size) // size).reshape(shape)

    def _spread(self, x: Tensor, cells: Tensor) -> list[int]:
        """Shape in which a mask of parts goes with an example."""
        shape = list(cells.shape)
        if self.parts is not None:
            shape.insert(0 if self.parts == 0 else len(shape), 1)
        return shape


__all__ = ["VerifiedPatches"]
