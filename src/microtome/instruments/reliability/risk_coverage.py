"""Risk against coverage when uncertain answers are withheld, and whether normalised logits mend it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from microtome.errors import Refusal
from microtome.figures import line
from microtome.finding import Finding, Quantity, Table
from microtome.folds import row_uniform
from microtome.folds.answers import answers, log_odds
from microtome.instrument import Asking, HasClasses, HasTargets, Instrument
from microtome.statistics import aurc, aurc_resamples, auroc, selective_risks
from microtome.subject import Subject

LARGE = 1e6
"""Masked logits may be infinite; beyond this they count the same."""
COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.5)


@dataclass(frozen=True, kw_only=True)
class RiskCoverage(Instrument):
    """If it may withhold its least certain answers, how many errors remain?

    Of m answers sorted by a score s(z) of their logits [m, k], risk(i) is the share of errors among the i
    most certain; AURC is its mean over i (Geifman & El-Yaniv 2017; smaller is better), excess AURC the
    distance from an ideal order, AUROC how often a right answer scores above a wrong one. Scores: max
    softmax, negative entropy, max logit, softmax margin, and max z' / |z'|_p with z' the centred logits
    (Cattelan & Silva 2023), p chosen by AURC on one half of the rows and judged on the other, kept only
    where it beat max softmax. Xia et al. 2024: training with label smoothing spoils the max logit, and this
    normalisation mends it; without label smoothing expect no gain. Reads at most 65536 predictions.
    With few errors the intervals are wide; with two classes the normalised logit is constant and no help.
    """

    papers = ("label-smoothing-hurts-selective",)
    needs = HasTargets & HasClasses
    how_to_read = (
        "AURC is the error rate averaged over all shares of answers one could keep; excess AURC takes off "
        "what the error rate alone makes unavoidable. A repair gain whose interval lies above 0 says that "
        "the network knows more about its errors than its softmax shows."
    )

    powers: tuple[float, ...] = (1, 2, 3, 4, 5, 6, 8, 10)
    seed: int = 0

    def examine(self, subject: Subject) -> Asking:
        if (subject.classes or 0) < 2:
            raise Refusal("one class leaves nothing to be unsure about")
        if not self.powers or min(self.powers) <= 0:
            raise Refusal("powers must be positive")
        ids, z, y = yield answers(subject)
        scores, norms = (s.numpy() for s in _scores(z.double().clamp(-LARGE, LARGE), self.powers))
        error = (z.argmax(1) != y).numpy().astype(np.float64)
        m, wrong = len(error), int(error.sum())
        names = ("max softmax", "negative entropy", "max logit", "softmax margin")
        held = (row_uniform(ids, self.seed) >= 0.5).numpy()
        fit, read = (~held, held) if held.any() and not held.all() else (held | True, held | True)
        tried = aurc(norms[:, fit], error[fit])
        plain = float(aurc(scores[0, fit], error[fit]))
        best = int(tried.argmin())
        chosen = self.powers[best] if tried[best] < plain else None
        repaired = norms[best] if chosen is not None else scores[0]
        before, after = (float(aurc(s[read], error[read])) for s in (scores[0], repaired))
        pair = aurc_resamples(np.stack([scores[0, read], repaired[read]]), error[read], seed=self.seed)
        spread = aurc_resamples(scores[:1], error, seed=self.seed)[0]
        curves = selective_risks(np.concatenate([scores, repaired[None]]), error)
        ideal = float(aurc(-error, error))
        areas = curves.mean(-1)
        at = [max(round(c * m), 1) - 1 for c in COVERAGES]
        power = "none beat max softmax" if chosen is None else f"p = {chosen:g}"
        labelled = (*names, f"normalised logit ({power})")
        rows = tuple(
            (name, float(area), float(area) - ideal, auroc(s, error == 0), *(float(curve[i]) for i in at))
            for name, area, curve, s in zip(labelled, areas, curves, (*scores, repaired), strict=True)
        )
        seen = np.unique(np.geomspace(1, m, 120).astype(int)) - 1
        seen = np.unique(np.concatenate([seen, np.linspace(0, m - 1, 120).astype(int)]))
        points = [
            {"coverage": (i + 1) / m, "risk": float(curve[i]), "score": name}
            for name, curve in zip(labelled, curves, strict=True)
            for i in seen
        ]
        low, high = np.quantile(spread, (0.025, 0.975))
        gain_low, gain_high = np.quantile(pair[0] - pair[1], (0.025, 0.975))
        detected = auroc(scores[0], error == 0)
        quantities = {
            "AURC": Quantity(
                value=float(areas[0]),
                low=float(low),
                high=float(high),
                how="Poisson bootstrap",
                better="lower",
            ),
            "excess AURC": Quantity(value=max(float(areas[0]) - ideal, 0.0), better="lower"),
            "error rate": Quantity(value=wrong / m, better="lower"),
            "repair gain": Quantity(
                value=before - after,
                low=float(gain_low),
                high=float(gain_high),
                how="paired Poisson bootstrap on the half that did not choose p",
                better="",
            ),
        }
        caveats = []
        if detected is not None:
            quantities["AUROC of errors"] = Quantity(value=detected, better="higher")
        else:
            caveats.append("no error to detect" if not wrong else "no right answer")
        if chosen is not None:
            quantities["chosen p"] = Quantity(value=chosen)
        if 0 < wrong < 30:
            caveats.append(f"only {wrong} errors: the order of scores is uncertain")
        if not subject.task.one_answer_per_example:
            caveats.append("positions of one sequence are not independent: the intervals are too narrow")
        kept = float(curves[0, at[2]])
        return Finding(
            headline="AURC",
            summary=f"Withholding the least certain tenth takes errors from {wrong / m:.3f} to {kept:.3f}.",
            quantities=quantities,
            tables={
                "scores": Table(
                    columns=("score", "AURC", "excess", "AUROC", *(f"risk at {c:.0%}" for c in COVERAGES)),
                    rows=rows,
                    caption="p was chosen on half of these rows; the repair gain is of the other half alone",
                ),
                "powers": Table(
                    columns=("p", "AURC on the choosing half"),
                    rows=(
                        (None, plain),
                        *((float(p), float(a)) for p, a in zip(self.powers, tried, strict=True)),
                    ),
                    caption="None: max softmax",
                ),
            },
            figures={
                "risk coverage": line(
                    "Risk against coverage", points, x="coverage", y="risk", series="score", points=False
                )
            },
            caveats=tuple(caveats),
        )


def _scores(z: Tensor, powers: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """[m, k] logits -> [4, m] scores and [p, m] largest centred logits over their p-norms."""
    p = z.softmax(1)
    best = p.topk(2, dim=1).values
    scores = torch.stack([log_odds(z), torch.special.xlogy(p, p).sum(1), z.amax(1), best[:, 0] - best[:, 1]])
    centred = z - z.mean(1, keepdim=True)
    unit = centred / centred.abs().amax(1, keepdim=True).clamp_min(torch.finfo(z.dtype).tiny)
    norms = [unit.amax(1) / torch.linalg.vector_norm(unit, p, 1).clamp_min(1e-300) for p in powers]
    # With p = 1, or two classes, equal scores differ by rounding alone: let them be ties.
    return scores, torch.stack(norms).mul(2.0**40).round().div(2.0**40)
