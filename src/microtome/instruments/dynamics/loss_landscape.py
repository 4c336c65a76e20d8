"""The loss surface along filter-normalised random directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from microtome.errors import Refusal
from microtome.figures import heatmap, line
from microtome.finding import Figure, Finding, Quantity, Table
from microtome.folds import Collect, Fold, Moments, Sample
from microtome.instrument import Asking, HasParameters, HasTargets, Instrument
from microtome.instruments.dynamics._words import eval_mode, loss_unit
from microtome.signals import Constant, Signal, derive, loss, prediction_ids
from microtome.signals.directions import Along, filter_normalised
from microtome.statistics import student
from microtome.subject import Subject


def _rise(here: Tensor, *there: Tensor) -> Tensor:
    """[m] mean loss elsewhere less the loss here, prediction by prediction."""
    return torch.stack([t.double() for t in there]).mean(0) - here.double()


@dataclass(frozen=True, kw_only=True)
class LossLandscape(Instrument):
    """How steep and how smooth is the valley in which the weights lie?

    Mean loss L(a) at theta + a d for two random directions d, normal numbers rescaled so that every filter is
    as long as the network's own (Li et al. 2018; biases and scales stay put): a = 1 moves each filter by its
    own length, so networks that compute the same function with rescaled filters give the same curve.
    Sharpness: L at a = +-radius less L(0), mean of both signs and directions. Curvature: second difference
    over the grid step. Non-convexity: sum of the negative second differences over that of their sizes, on
    the lines. Cost: 41 forwards of n rows, and 81 of n / 4 for the surface (surface=0 leaves it out).
    Misleads: two directions out of p show the average curvature, never the steepest (see the Hessian).
    """

    papers = ("filter-normalised-loss-landscapes",)
    needs = HasTargets & HasParameters
    how_to_read = (
        "The sharpness is how much the loss rises when every filter is changed at random by the given share "
        "of its own length. Flat, convex curves are wide valleys; compare networks only on the same data."
    )

    examples: int = 256
    points: int = 21
    radius: float = 0.5
    surface: int = 9
    seed: int = 0

    def examine(self, subject: Subject) -> Asking:
        if self.points < 5 or not 0 < self.radius <= 1:
            raise Refusal("a line needs at least 5 points, and a radius within 0 and 1")
        both = tuple(Constant(filter_normalised(subject, 2 * self.seed + i)) for i in range(2))
        if not bool(both[0].value.any()):
            raise Refusal(
                "no filter to normalise: no weight tensor of two or more dimensions, or all are zero"
            )

        def at(*steps: float) -> Signal:
            return loss.at(Along(both, steps)) if any(steps) else loss

        def on(line: int, step: float) -> Signal:
            return at(*(step if line == i else 0.0 for i in range(2)))

        over, few = Sample(self.examples, self.seed), Sample(max(self.examples // 4, 1), self.seed)
        steps = np.linspace(-1, 1, self.points | 1).round(12).tolist()
        ticks = np.linspace(-1, 1, self.surface | 1).round(12).tolist() if self.surface > 1 else []
        rise_of = [on(i, r) for i in range(2) for r in (self.radius, -self.radius)]
        asked: dict[str, list[Fold]] = {
            "lines": [Moments(signals=(on(i, a),), over=over) for i in range(2) for a in steps],
            "surface": [Moments(signals=(at(a, b),), over=few) for a in ticks for b in ticks],
            "rise": [Collect(signals=(prediction_ids, derive(_rise, loss, *rise_of)), over=over)],
        }  # fmt: skip
        found = yield asked
        ids, rise = found["rise"][0]
        if not bool(torch.isfinite(rise).all()):
            raise Refusal(f"the loss is not finite at a radius of {self.radius:g}; use a smaller one")
        lines = np.array([float(m.mean) for m in found["lines"]]).reshape(2, -1)
        surface = np.array([float(m.mean) for m in found["surface"]]).reshape(len(ticks), len(ticks))
        return self._finding(subject, ids, rise.numpy(), np.array(steps), lines, ticks, surface)

    def _finding(
        self, subject: Subject, ids: Tensor, rise: np.ndarray, steps: np.ndarray, lines: np.ndarray,
        ticks: list[float], surface: np.ndarray,
    ) -> Finding:  # fmt: skip
        unit, width, middle = loss_unit(subject), float(steps[1] - steps[0]), len(steps) // 2
        sharpness, low, high = student(rise)
        interval: dict[str, Any] = (
            {"low": low, "high": high, "how": "t over predictions"} if len(rise) > 1 else {}
        )
        bends = np.diff(lines, 2, axis=1)
        bends = bends[np.isfinite(bends)]
        size = float(np.abs(bends).sum())
        curvature = [float(x[middle - 1] - 2 * x[middle] + x[middle + 1]) / width**2 for x in lines]
        usual = subject.task.one_answer_per_example or not subject.task.categorical
        dependent = "positions of one example are not independent: the interval is too narrow"
        words: tuple[str, ...] = () if usual else (dependent,)
        if not np.isfinite(lines).all() or not np.isfinite(surface).all():
            words += ("points where the loss is not finite are left out",)
        curved = float(np.abs(bends[bends < 0]).sum()) / size if size > 0 else 0.0
        table = tuple(
            (i + 1, curvature[i], float(np.nanmin(x)), float(steps[np.nanargmin(x)]))
            for i, x in enumerate(lines)
        )
        return Finding(
            headline="sharpness",
            summary=f"Moving every filter at random by {self.radius:.0%} of its length raises the loss from "
            f"{lines[0, middle]:.3g} by {sharpness:.3g} {unit}.",
            quantities={
                "sharpness": Quantity(value=sharpness, unit=unit, better="lower", **interval),
                "curvature": Quantity(value=float(np.mean(curvature)), unit=unit, better="lower"),
                "non-convexity": Quantity(value=curved, better="lower"),
                "loss": Quantity(value=float(lines[0, middle]), unit=unit, better="lower"),
            },
            tables={"lines": Table(columns=("direction", "curvature", "lowest loss", "at"), rows=table)},
            figures=_draw(steps, lines, ticks, surface, unit),
            arrays={
                "rows": ids.numpy(), "samples": rise, "steps": steps, "lines": lines, "surface": surface,
            },
            caveats=(*words, *eval_mode(subject)),
        )  # fmt: skip


def _draw(
    steps: np.ndarray, lines: np.ndarray, ticks: list[float], surface: np.ndarray, unit: str
) -> dict[str, Figure]:
    data = [
        {"step": float(a), "loss": float(v) if np.isfinite(v) else None, "direction": str(i + 1)}
        for i, x in enumerate(lines) for a, v in zip(steps, x, strict=True)
    ]  # fmt: skip
    figures = {
        "lines": line(
            "Loss along two directions", data, x="step", y="loss", series="direction", y_unit=unit,
            log_y=True, x_title="step, in lengths of each filter",
        )
    }  # fmt: skip
    if ticks:
        names = [f"{t:+.2f}" for t in ticks]
        figures["surface"] = heatmap(
            "Loss surface", np.where(np.isfinite(surface), np.log10(np.maximum(surface, 1e-12)), np.nan),
            row_names=names, column_names=names, row_title="direction 1", column_title="direction 2",
            value_title="log10 of the loss", caption="On a quarter of the rows of the lines.",
        )  # fmt: skip
    return figures
