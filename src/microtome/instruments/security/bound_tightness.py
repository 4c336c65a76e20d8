"""How much of a propagated box the outputs really fill."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from microtome.errors import Refusal
from microtome.finding import Finding, Quantity, Table
from microtome.folds import Collect, Sample
from microtome.instrument import Asking, HasSite, Independent, Instrument, OneAnswer
from microtome.instruments.security._gates import beware
from microtome.instruments.security._range import range_of_inputs, rounds_for_range
from microtome.signals import derive, rows
from microtome.signals.bounds import MOST_WORK, Widths, left_out
from microtome.signals.interpretation import interpreted
from microtome.statistics import student
from microtome.subject import Subject


def _width(widths: dict[str, Tensor], *, key: str) -> Tensor:
    """[n, j] one of the widths."""
    return widths[key].double()


@dataclass(frozen=True, kw_only=True)
class BoundTightness(Instrument):
    """How much of the box that interval bounds give do the outputs really fill?

    Propagation tightness (Mao et al. 2024): width of the smallest box that holds the outputs for all
    |x' - x|_inf <= e, over that of the box by intervals; in (0, 1], 1 where intervals are exact. For deep linear
    networks the smallest box is |W_L ... W_1| e and intervals give |W_L| ... |W_1| e. For others it is bracketed,
    output by output [n, outputs]: no narrower than what two corners reach (a step along the signs of each output's
    gradient and one against them; exact for linear networks), no wider than the box of linear bounds (CROWN).
    The headline is the mean of the lower end; e is a share of the input range, ``outputs`` the number of largest
    outputs looked at. Cost: 3 forwards for intervals, 2 forwards and a backward an output, and hundreds of
    forwards a row for linear bounds (``linear=False`` leaves them out, as do networks whose bounds might take more than
    ``most_work`` operations).
    Misleads: tight bounds are neither needed nor enough for robust answers: they tell of the bounds.
    """

    papers = ("ibp-certified-training-and-propagation",)
    needs = OneAnswer & Independent & HasSite
    how_to_read = (
        "At 1 interval bounds lose nothing; at 0.01 they are a hundred times as wide as the outputs really range, "
        "and certify little whatever the network does. Training through interval bounds raises it."
    )

    radius: float = 2 / 255
    examples: int = 4
    outputs: int = 16
    linear: bool = True
    most_work: float = MOST_WORK
    seed: int = 0

    def rounds(self, subject: Subject) -> int:
        return 1 + rounds_for_range(subject)

    def examine(self, subject: Subject) -> Asking:
        if self.radius <= 0 or self.outputs < 1:
            raise Refusal("the radius is above 0, and at least one output is looked at")
        over = Sample(self.examples, self.seed)
        low, high = yield from range_of_inputs(subject, over)
        count = min(self.examples, subject.examples)
        limit = self.most_work / max(count, 1)
        widths = interpreted(Widths(self.radius * (high - low), self.outputs, self.linear, limit))
        names = ("reached", "interval", "linear") if self.linear else ("reached", "interval")
        found = yield Collect(signals=(rows, *(derive(_width, widths, key=k) for k in names)), over=over)
        ids, words = found[0].numpy(), left_out(subject, count, self.most_work) if self.linear else ()
        wide = dict(zip(names, (t.numpy() for t in found[1:]), strict=True))
        if not all(np.isfinite(w).all() for w in wide.values()):
            raise Refusal("no finite box at this radius: choose a smaller one")
        if not (wide["interval"] > 0).any():
            raise Refusal("no output moves within the radius: there is no width to compare")
        moves = wide["interval"] > 0
        safe = np.where(moves, wide["interval"], 1.0)
        counted = np.maximum(moves.sum(1), 1)
        share = {k: np.where(moves, np.minimum(wide[k] / safe, 1.0), 0.0).sum(1) / counted for k in wide}
        least, most = share["reached"], share.get("linear", np.ones(len(ids)))
        quantities = {"tightness": _mean(least)}
        if self.linear:
            quantities["tightness, at most"] = _mean(most)
        quantities["width of the interval box"] = Quantity(
            value=float(wide["interval"].mean()), unit="output"
        )
        quantities["width reached"] = Quantity(value=float(wide["reached"].mean()), unit="output")
        quantities["radius"] = Quantity(value=self.radius, unit="input range")
        between = f" and at most {float(most.mean()):.3g}" if self.linear else ""
        return Finding(
            headline="tightness",
            summary=f"Within {self.radius:.3g} of the input range the outputs fill at least "
            f"{float(least.mean()):.3g}{between} of the box that intervals give.",
            quantities=quantities,
            tables={
                "examples": Table(
                    columns=("example", "tightness", "at most"),
                    rows=tuple(zip(ids.tolist(), least.tolist(), most.tolist(), strict=True)),
                )
            },
            arrays={"rows": ids, "samples": least, "at_most": most},
            caveats=(*words, *beware(subject, (), low, high)),
        )


def _mean(values: np.ndarray) -> Quantity:
    mean, low, high = student(values)
    if len(values) < 2:
        return Quantity(value=mean, better="higher")
    return Quantity(value=mean, low=low, high=high, how="t over examples", better="higher")
