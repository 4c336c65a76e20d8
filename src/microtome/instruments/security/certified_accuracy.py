"""Certified accuracy against radius, by interval and by linear bounds, beside the accuracy under PGD."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from microtome.errors import Refusal
from microtome.figures import line
from microtome.finding import Finding, Quantity, Table, Threshold
from microtome.folds import Collect, Sample
from microtome.instrument import Asking, HasClasses, HasSite, HasTargets, Independent, Instrument, OneAnswer
from microtome.instruments.security._gates import beware, curves, share_of
from microtome.instruments.security._range import range_of_inputs, rounds_for_range
from microtome.signals import derive, inputs, rows
from microtome.signals.bounds import MOST_WORK, certified_radius, left_out
from microtome.signals.perturb import PGD, answered_right, distance
from microtome.statistics import student
from microtome.subject import Subject

SOUND = "a certificate is a proof (Gowal et al. 2018; Zhang et al. 2018): one that an attack breaks is wrong"


@dataclass(frozen=True, kw_only=True)
class CertifiedAccuracy(Instrument):
    """How many right answers are certain, whatever an attacker does within a radius?

    Certified at e: the lower bound of logit(label) - logit(j) is positive for every j and all |x' - x|_inf <= e
    within the bounds of the inputs; e is a share of the input range. Two bounds: intervals (IBP, Gowal et al.
    2018; 3 forwards each) and linear bounds (CROWN, Zhang et al. 2018, never below the intervals; hundreds of
    forwards a row of a deep network, so few rows are taken, and none where they might take more than ``most_work``
    operations). Each example has a certified radius [n]: the largest
    strength of the ladder that is certified, the gap to the next halved ``interval_steps`` or ``linear_steps``
    times; wrong answers have 0. True robust accuracy lies between the certified one and that under PGD [n],
    on the same rows. An example that is certified and broken all the same is counted as a violation, an alarm.
    Misleads: low certified accuracy of an ordinarily trained network says that bounds are loose, not that it
    is broken; the distance to PGD tells. Radii end at the largest strength.
    """

    papers = ("ibp-certified-training-and-propagation",)
    needs = HasTargets & HasClasses & OneAnswer & Independent & HasSite
    how_to_read = (
        "These answers are proven to hold for every change within the radius; accuracy under attack can only be "
        "higher. A wide gap between the two leaves the examples in it undecided: tighter bounds or a stronger "
        "attack would tell."
    )

    strengths: tuple[float, ...] = (2 / 255, 8 / 255)
    at: float = 2 / 255
    examples: int = 8
    steps: int = 10
    interval_steps: int = 8
    linear_steps: int = 0
    most_work: float = MOST_WORK
    seed: int = 0

    def rounds(self, subject: Subject) -> int:
        return 1 + rounds_for_range(subject)

    def examine(self, subject: Subject) -> Asking:
        shares = tuple(sorted({*self.strengths, self.at}))
        if shares[0] <= 0 or self.steps < 1 or min(self.interval_steps, self.linear_steps) < 0:
            raise Refusal("strengths are above 0, steps of the attack at least 1, halvings not below 0")
        over = Sample(self.examples, self.seed)
        low, high = yield from range_of_inputs(subject, over)
        sizes = tuple(share * (high - low) for share in shares)
        count = min(self.examples, subject.examples)
        limit = self.most_work / max(count, 1)
        attack, right = PGD(sizes, self.steps, seed=self.seed), answered_right()
        found = yield Collect(
            signals=(
                rows,
                right,
                right.under(attack),
                derive(distance, inputs, inputs.under(attack), norm="linf"),
                certified_radius(sizes, "interval", self.interval_steps),
                certified_radius(sizes, "linear", self.linear_steps, limit),
            ),
            over=over,
        )
        ids, was, stays, moved, by_interval, by_linear = (t.double().numpy() for t in found)
        n, good = len(ids), was > 0
        reach = np.where(good & (stays == 0), moved, np.inf)
        rounding = 8 * torch.finfo(subject.dtype).eps * max(abs(low), abs(high))
        survives = np.stack([good & (reach > e + min(rounding, e / 2)) for e in sizes])
        # What intervals certify is certain too; the linear radius may stop at a lower rung of the ladder.
        radius = np.where(good, np.maximum(by_interval, by_linear), 0.0)
        holds = {
            "linear bounds": np.stack([radius >= e for e in sizes]),
            "intervals": np.stack([good & (by_interval >= e) for e in sizes]),
        }
        violated = int((holds["linear bounds"] & ~survives).any(0).sum())
        here = shares.index(self.at)
        mean, least, most = student(radius / (high - low))
        ends = (max(least, 0.0), most) if n > 1 else (None, None)
        quantities = {
            "certified accuracy": share_of(holds["linear bounds"][here]),
            "certified accuracy, intervals": share_of(holds["intervals"][here]),
            "accuracy under PGD": share_of(survives[here]),
            "clean accuracy": share_of(good),
            "strength": Quantity(value=self.at, unit="input range"),
            "mean certified radius": Quantity(
                value=mean,
                unit="input range",
                low=ends[0],
                high=ends[1],
                how="t over examples" if n > 1 else "",
                better="higher",
            ),
            "violations": Quantity(value=violated, unit="examples", better="lower"),
        }
        series = {"PGD": survives.mean(1), **{name: held.mean(1) for name, held in holds.items()}}
        words = (*left_out(subject, count, self.most_work), *beware(subject, (), low, high))
        if violated:
            words = (f"unsound: {violated} certified examples are broken by PGD", *words)
        certain, attacked = quantities["certified accuracy"].value, float(series["PGD"][here])
        return Finding(
            headline="certified accuracy",
            summary=f"Of all answers {good.mean():.3f} are right; against changes of {self.at:.3g} of the input "
            f"range {certain:.3f} are proven to stay so, and {attacked:.3f} survive PGD.",
            quantities=quantities,
            tables={
                "strengths": Table(
                    columns=("strength", *series),
                    rows=tuple((s, *(float(c[i]) for c in series.values())) for i, s in enumerate(shares)),
                    caption="Share of answers that are right and certain (or survive), by share of the input range",
                )
            },
            figures={
                "curve": line(
                    "Accuracy against the strength of changes", curves(shares, float(good.mean()), series),
                    x="strength", y="accuracy", series="attack", x_unit="input range",
                )
            },
            arrays={
                "rows": found[0].numpy(),
                "samples": holds["linear bounds"][here].astype(np.float64),
                "certified_radius": radius / (high - low),
                "interval_radius": np.where(good, by_interval, 0.0) / (high - low),
            },
            threshold=Threshold(quantity="violations", watch=0, alarm=0, source=SOUND) if violated else None,
            caveats=words,
        )  # fmt: skip
