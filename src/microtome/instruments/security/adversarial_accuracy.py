"""Accuracy under FGSM and PGD against strength, with checks that the attack itself is not fooled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from microtome.errors import Refusal
from microtome.figures import line
from microtome.finding import Finding, Quantity, Table
from microtome.folds import Collect, Moments, Sample
from microtome.instrument import Asking, HasClasses, HasSite, HasTargets, Independent, Instrument, OneAnswer
from microtome.instruments.security._gates import COLUMNS, beware, curves, flat_slope, gates_of, share_of
from microtome.instruments.security._range import range_of_inputs, rounds_for_range
from microtome.signals import derive, gradient, inputs, rows
from microtome.signals.perturb import FGSM, NORMS, PGD, Noise, Norm, answered_right, attacked_loss, distance
from microtome.statistics import wilson
from microtome.subject import Subject

FEW = 64


@dataclass(frozen=True, kw_only=True)
class AdversarialAccuracy(Instrument):
    """How many right answers survive an attacker who may change the input a little?

    Strength e is a share of the input range: |x' - x|_inf <= e * range (``norm="l2"``: root mean square
    change). FGSM: x + e sign(g), g the gradient of the cross-entropy (Goodfellow et al. 2015). PGD: ``steps``
    projected steps of 2.5 e / steps from a random start, ascending a ladder of strengths (Madry et al. 2018);
    an example is attacked until it breaks, so each has one smallest breaking strength [n]. At most 2 steps
    forwards a strength on ``examples`` rows. Range: the bounds, else that of the sample. Integer inputs:
    the embedding's output moves. Gates against an attack that fails for its own reasons (Athalye, Carlini &
    Wagner 2018; Carlini et al. 2019): slopes are not zero; PGD is not weaker than FGSM; noise of the same
    strength does not beat PGD; the loss grows with steps; an unbounded attack breaks everything.
    An attack gives an upper bound on robust accuracy: a stronger one may find more.
    """

    needs = HasTargets & HasClasses & OneAnswer & Independent & HasSite
    how_to_read = (
        "The share of examples that are answered right and stay so under this attack; a stronger attack can "
        "only lower it. A failed gate says that the number is too good: the attack gave up."
    )

    strengths: tuple[float, ...] = (2 / 255, 8 / 255, 24 / 255, 64 / 255)
    at: float = 8 / 255
    steps: int = 10
    norm: str = "linf"
    examples: int = 256
    seed: int = 0

    def rounds(self, subject: Subject) -> int:
        return 1 + rounds_for_range(subject)

    def examine(self, subject: Subject) -> Asking:
        shares = tuple(sorted({*self.strengths, self.at}))
        if self.norm not in NORMS or shares[0] <= 0 or self.steps < 1:
            raise Refusal("norm is 'linf' or 'l2', strengths are above 0, steps at least 1")
        over = Sample(self.examples, self.seed)
        low, high = yield from range_of_inputs(subject, over)
        sizes = tuple(share * (high - low) for share in shares)
        # Beyond the ladder one strength that can turn any input into any other.
        norm = cast(Norm, self.norm)
        attack = PGD((*sizes, max(high - low, 2 * sizes[-1])), self.steps, norm, seed=self.seed)
        right = answered_right()
        once = [right.under(FGSM(e, norm)) for e in sizes]
        chance = [right.under(Noise(e, norm, self.seed)) for e in sizes]
        middle = sizes[len(sizes) // 2]
        counts = tuple(sorted({1, max(self.steps // 2, 1), self.steps}))
        paces = [PGD((middle,), s, norm, seed=self.seed, stop=False) for s in counts]
        found, *losses = yield [
            Collect(
                signals=(
                    rows,
                    right,
                    right.under(attack),
                    derive(distance, inputs, inputs.under(attack), norm=self.norm),
                    derive(flat_slope, gradient(attacked_loss())),
                    *once,
                    *chance,
                ),
                over=over,
            ),
            *(
                Moments(signals=(attacked_loss().under(p),), over=Sample(min(FEW, self.examples), self.seed))
                for p in paces
            ),
        ]
        ids, was, stays, moved, flat, *others = (t.numpy() for t in found)
        n, good = len(ids), was > 0
        broken = good & (stays == 0)
        reach = np.where(broken, moved, np.inf)
        rounding = 8 * torch.finfo(subject.dtype).eps * max(abs(low), abs(high))
        survives = np.stack([good & (reach > e + min(rounding, e / 2)) for e in sizes])
        accuracy = survives.mean(1)
        single, noisy = (np.stack(part).mean(1) for part in (others[: len(sizes)], others[len(sizes) :]))
        means = [float(m.mean) for m in losses]
        dull, unbounded = float(flat[good].mean()) if good.any() else 0.0, float((good & ~broken).mean())
        gates = gates_of(accuracy, single, noisy, dull, unbounded, means, counts, slack=0.01 + 1 / n)
        failed = tuple(gate[0] for gate in gates if not gate[-1])
        here = shares.index(self.at)
        kept = int(survives[here].sum())
        quantities = {
            "adversarial accuracy": share_of(survives[here]),
            "clean accuracy": share_of(good),
            "strength": Quantity(value=self.at, unit="input range"),
            "gates failed": Quantity(value=len(failed), better="lower"),
        }
        if 2 * broken.sum() > good.sum():
            half = float(np.sort(reach[good])[(int(good.sum()) - 1) // 2]) / (high - low)
            quantities["median breaking strength"] = Quantity(value=half, unit="input range", better="higher")
        table = tuple(
            (share, *(float(c[i]) for c in (accuracy, single, noisy)), *wilson(int(survives[i].sum()), n))
            for i, share in enumerate(shares)
        )
        attacks = {"PGD": accuracy, "FGSM": single, "noise": noisy}
        return Finding(
            headline="adversarial accuracy",
            summary=f"Changes of {self.at:.3g} of the input range take accuracy from {good.mean():.3f} "
            f"to {kept / n:.3f}"
            + (f"; {len(failed)} of {len(gates)} checks of the attack fail." if failed else "."),
            quantities=quantities,
            tables={
                "strengths": Table(
                    columns=("strength", "PGD", "FGSM", "noise", "PGD low", "PGD high"),
                    rows=table,
                    caption="Accuracy by strength, as a share of the input range",
                ),
                "gates": Table(
                    columns=COLUMNS,
                    rows=gates,
                    caption="Is the attack itself to be trusted?",
                ),
            },
            figures={
                "curve": line(
                    "Accuracy under attack",
                    curves(shares, float(good.mean()), attacks),
                    x="strength",
                    y="accuracy",
                    series="attack",
                    x_unit="input range",
                )
            },
            arrays={
                "rows": ids,
                "samples": survives[here].astype(np.float64),
                "breaking_strength": np.where(broken, moved / (high - low), -1.0),
            },
            caveats=beware(subject, failed, low, high),
        )
