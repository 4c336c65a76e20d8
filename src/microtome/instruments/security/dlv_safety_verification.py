"""Safety of an answer on a grid of small changes: a certificate, or a concrete example against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from microtome.errors import Refusal
from microtome.finding import Finding, Quantity, Table
from microtome.folds import Collect, Sample
from microtome.instrument import Asking, HasClasses, HasSite, Independent, Instrument, OneAnswer
from microtome.instruments.security._gates import beware, share_of
from microtome.instruments.security._range import range_of_inputs, rounds_for_range
from microtome.signals import derive, inputs, rows
from microtome.signals.bounds import Method
from microtome.signals.discretised import Discretised
from microtome.signals.interpretation import interpreted
from microtome.subject import Subject

KEYS = ("safe", "at once", "boxes", "points", "witness")


def _key(found: dict[str, Any], *, key: str) -> Tensor:
    value: Tensor = found[key]
    return value


@dataclass(frozen=True, kw_only=True)
class SafetyVerification(Instrument):
    """Is an answer safe from all changes of a few inputs on a grid?

    For each example the ``free`` inputs by which the margin changes most (largest |d(f_c - f_j)/dx|, j the runner-up)
    take ``levels`` evenly spaced values within ``radius`` (a share of the input range), cut to the bounds: a grid of
    levels^free inputs [n, ...]. All of it is searched (Huang et al. 2017): a box of the grid whose lower bound on the
    margin is positive is certain and not looked into, others are halved down to single inputs that are evaluated.
    So each example ends with a certificate or with a concrete input that is answered otherwise: nothing is missed
    and nothing stays open. Classes are the network's own answers; labels are not needed. Bounds: ``method``
    "interval" (default), "mixed" or "linear". Cost: at most twice as many bounds and evaluations as the grid
    has points, usually a small part of it.
    Misleads: the certificate speaks of these inputs on this grid only; other inputs, or values beside the grid
    (except in boxes that are certain as a whole), may still change the answer.
    """

    papers = ("dlv-safety-verification",)
    needs = HasClasses & OneAnswer & Independent & HasSite
    how_to_read = (
        "The share of examples for which no point of the grid changes the answer; for the others the finding holds "
        "a concrete input that does. 'By the first bound' counts those that needed no search at all."
    )

    radius: float = 0.25
    free: int = 4
    levels: int = 3
    method: Method = "interval"
    examples: int = 16
    seed: int = 0

    def rounds(self, subject: Subject) -> int:
        return 1 + rounds_for_range(subject)

    def examine(self, subject: Subject) -> Asking:
        if subject.site_layer is not None:
            raise Refusal("inputs are integers: no grid of values between two of them")
        over = Sample(self.examples, self.seed)
        low, high = yield from range_of_inputs(subject, over)
        search = interpreted(Discretised(self.radius * (high - low), self.free, self.levels, self.method))
        found = yield Collect(
            signals=(rows, *(derive(_key, search, key=key) for key in KEYS), inputs), over=over
        )
        ids, safe, once, boxes, points, witness, given = (
            (t.double() if t.is_floating_point() else t).numpy() for t in found
        )
        free = min(self.free, int(np.prod(given.shape[1:])))
        size = self.levels**free
        looked = (boxes + points) / size
        moved = np.abs(witness - given).reshape(len(ids), -1)
        quantities = {
            "safe": share_of(safe),
            "safe by the first bound": share_of(once),
            "bounds and evaluations, of the grid": Quantity(value=float(looked.mean()), better="lower"),
            "points of the grid": Quantity(value=size, unit="inputs"),
            "radius": Quantity(value=self.radius, unit="input range"),
        }
        table = tuple(
            (int(i), bool(s), int(b), int(p), int((m > 0).sum()), float(m.max() / (high - low)))
            for i, s, b, p, m in zip(ids, safe, boxes, points, moved, strict=True)
        )
        return Finding(
            headline="safe",
            summary=f"{int(safe.sum())} of {len(ids)} answers hold on all {size} points of a grid over "
            f"{free} inputs within {self.radius:.3g} of the range; for the others an example is given.",
            quantities=quantities,
            tables={
                "examples": Table(
                    columns=(
                        "example",
                        "safe",
                        "boxes bounded",
                        "points evaluated",
                        "inputs moved",
                        "largest move",
                    ),
                    rows=table,
                    caption="Moves are those of the example that is answered otherwise, of the input range",
                )
            },
            arrays={"rows": ids, "samples": safe.astype(np.float64), "witness": witness.astype(np.float32)},
            caveats=beware(subject, (), low, high),
        )
