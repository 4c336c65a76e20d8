"""How often an answer changes when the image moves by one pixel."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from microtome.errors import Refusal
from microtome.figures import bars
from microtome.finding import Finding, Quantity, Table
from microtome.folds import Collect, Moments, Sample
from microtome.instrument import Asking, HasClasses, HasImages, Instrument, OneAnswer
from microtome.signals import derive, prediction_ids, predictions, probabilities
from microtome.signals.perturb import Shift
from microtome.statistics import normal, wilson
from microtome.subject import Subject

NAMES = {
    (1, 0): "right",
    (0, 1): "down",
    (-1, 0): "left",
    (0, -1): "up",
    (1, 1): "right down",
    (-1, 1): "left down",
    (-1, -1): "left up",
    (1, -1): "right up",
}


@dataclass(frozen=True, kw_only=True)
class OnePixelTranslation(Instrument):
    """Does moving the picture by one pixel change the answer?

    For each of 4 (``directions=8``: with diagonals) shifts s of one pixel, the share of images whose
    predicted class differs from that of the unmoved image, with Wilson's interval; their mean over shifts,
    and the share with at least one change; mean total variation 1/2 sum_k |p_k - p'_k|. Images [n, c, h, w];
    one forward a shift over at most ``examples`` images. What enters is the nearest edge ("edge"), zeros, or
    what left on the other side ("wrap", a cyclic shift). Shifra & Weiss 2024 move a crop window over a larger
    photograph, so that new content enters; here only the image itself is known, and a repeated edge stands
    for it. A whole pixel of an 8 x 8 image is a large move, one of a 224 x 224 image a small one.
    """

    papers = ("rics-one-pixel-translation",)
    needs = HasImages & HasClasses & OneAnswer
    how_to_read = (
        "A flip rate of 0.05 means that one move in twenty changes the answer though nobody would see a "
        "difference. It needs no labels: an answer that flips is wrong at least once. The rate grows as "
        "images get smaller, because a pixel is then a larger move."
    )

    directions: int = 4
    padding: str = "edge"
    examples: int = 2048
    seed: int = 0

    def examine(self, subject: Subject) -> Asking:
        if self.directions not in (4, 8) or self.padding not in ("edge", "zeros", "wrap"):
            raise Refusal("directions is 4 or 8, padding 'edge', 'zeros' or 'wrap'")
        moves = tuple(NAMES)[: self.directions]
        over = Sample(self.examples, self.seed)
        moved = [Shift(dx, dy, self.padding) for dx, dy in moves]
        flips = [derive(_differ, predictions, predictions.under(s)) for s in moved]
        (ids, rate, *each), *changes = yield [
            Collect(signals=(prediction_ids, derive(_mean, *flips), *flips), over=over),
            *(
                Moments(signals=(derive(_variation, probabilities, probabilities.under(s)),), over=over)
                for s in moved
            ),
        ]
        n = len(ids)
        mean = float(rate.mean())
        error = float(rate.std()) / n**0.5 if n > 1 else 0.0
        # Shifts of one image are not independent: the interval is over images, never narrower than
        # what n of them can show when no answer flips.
        low, high = normal(mean, error) if error else wilson(round(mean * n), n)
        rows = []
        for move, flip, change in zip(moves, each, changes, strict=True):
            count = int(flip.sum())
            rows.append((NAMES[move], count, count / n, *wilson(count, n), float(change.mean)))
        any_count = int((rate > 0).sum())
        any_low, any_high = wilson(any_count, n)
        columns = ("direction", "flips", "rate", "low", "high", "probability moved")
        return Finding(
            headline="flip rate",
            summary=f"One pixel changes {mean:.1%} of the answers; {any_count} of {n} images flip somewhere.",
            quantities={
                "flip rate": Quantity(
                    value=mean,
                    low=max(low, 0.0),
                    high=min(high, 1.0),
                    how="normal over images" if error else "Wilson",
                    better="lower",
                ),
                "flipped by some shift": Quantity(
                    value=any_count / n, low=any_low, high=any_high, how="Wilson", better="lower"
                ),
                "probability moved": Quantity(value=sum(r[-1] for r in rows) / len(rows), better="lower"),
            },
            tables={
                "directions": Table(
                    columns=columns, rows=tuple(rows), caption=f"Shifts by one pixel, padding: {self.padding}"
                )
            },
            figures={
                "directions": bars(
                    "Answers changed by one pixel",
                    [dict(zip(columns, row, strict=True)) for row in rows],
                    category="direction",
                    value="rate",
                    band=("low", "high"),
                    value_title="flip rate",
                )
            },
            arrays={"rows": ids.numpy(), "samples": rate.numpy()},
        )


def _differ(before: Tensor, after: Tensor) -> Tensor:
    return (before != after).double()


def _mean(*flips: Tensor) -> Tensor:
    return sum(flips[1:], flips[0]) / len(flips)


def _variation(before: Tensor, after: Tensor) -> Tensor:
    """[n] total variation distance."""
    return (before.double() - after.double()).abs().sum(1) / 2
