"""Integrated gradients, with the error of the integral."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace
from torch import Tensor

from microtome.errors import Refusal
from microtome.finding import Table, Threshold
from microtome.folds import Collect, Fold, Selection
from microtome.instrument import Asking, HasSite, Independent, Instrument
from microtome.instruments.explain._faithfulness import explain, mean_of, over_parts, parts_dimension
from microtome.signals import Constant, Signal, across, class_score, derive, gradient, inputs, rows
from microtome.signals.variations import Blank, Path
from microtome.subject import Subject

SOURCE = "Sundararajan et al. 2017: enough steps bring the sum within 5 %; at 100 % the shares say nothing"
RULES = ("gauss-legendre", "midpoint")


def _contribution(inputs: Tensor, mean: Tensor, *, baseline: float, parts: int | None) -> Tensor:
    """[n, ...], [n, ...] -> [n, parts ...]: way from the baseline times mean gradient on it."""
    return over_parts((inputs - baseline) * mean, parts)


def _total(relevance: Tensor) -> Tensor:
    """[n, ...] -> [n]."""
    return relevance.double().flatten(1).sum(1)


def quadrature(rule: str, steps: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Nodes within 0 and 1 and weights that sum to 1.

    Raises:
        Refusal: for an unknown rule, or no steps.
    """
    if rule not in RULES or steps < 1:
        raise Refusal(f"integration needs at least one step and a rule among {', '.join(RULES)}")
    if rule == "midpoint":
        return tuple((i + 0.5) / steps for i in range(steps)), (1 / steps,) * steps
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return tuple(((nodes + 1) / 2).tolist()), tuple((weights / 2).tolist())


@dataclass(frozen=True, kw_only=True)
class IntegratedGradients(Instrument):
    """Which parts carry the answer, in shares that add up to it?

    a = (x - x') * integral over t in 0..1 of ds/dx (x' + t (x - x')), [n, ...], for the logit s of the
    predicted class and a constant baseline x' (Sundararajan et al. 2017), summed over the channels of a pixel
    or the features of a token. The integral is a sum over ``steps`` points (Gauss-Legendre, or midpoint).
    Completeness: sum of a = s(x) - s(x') exactly for the integral; its error |sum a - (s(x) - s(x'))| over
    the mean |s(x) - s(x')| is what the sum of few points loses. Judged by insertion and deletion besides.
    Cost: 32 backwards of n examples and 60 forwards, a third of them shared with the rest of the room.
    Misleads: shares are relative to the baseline; parts equal to it get none (black strokes on black).
    """

    needs = HasSite & Independent
    how_to_read = (
        "The completeness error says whether the shares add up to the answer; above a few per cent take more "
        "steps. Whether they name the parts that matter is said by the gain over a random order."
    )

    examples: tuple[int, ...] = ()
    steps: int = 32
    rule: str = "gauss-legendre"
    baseline: float = 0.0

    def rounds(self, subject: Subject) -> int:
        return 3

    def examine(self, subject: Subject) -> Asking:
        nodes, weights = quadrature(self.rule, self.steps)
        parts, path = parts_dimension(subject), Path(nodes, self.baseline)

        def relevance(score: Signal) -> Signal:
            mean = across(gradient(score, "inputs"), path, weights)
            return derive(
                _contribution, inputs, mean, baseline=self.baseline, parts=parts, name="integrated_gradients"
            )

        def balance(classes: Constant, over: Selection) -> Mapping[str, Fold]:
            score = class_score(classes)
            total = derive(_total, relevance(score), name="sum")
            nothing = score.under(Blank(self.baseline))
            return {"balance": Collect(signals=(rows, total, score, nothing), over=over)}

        explained = yield from explain(
            subject, self.examples, relevance, baseline=self.baseline, extras=balance
        )
        found = explained.finding
        ids, *parts_of = explained.extra["balance"]
        total, score, nothing = (value.double().numpy() for value in parts_of)
        missing, scale = np.abs(total - (score - nothing)), float(np.abs(score - nothing).mean())
        if scale == 0:
            raise Refusal("the answer at the baseline is that at the input: there is nothing to share out")
        error = mean_of(missing / scale, better="lower")
        table = Table(
            columns=("example", "answer", "answer at the baseline", "sum of the shares", "error"),
            rows=tuple(zip(*(v.tolist() for v in (ids, score, nothing, total, missing)), strict=True)),
            caption=f"Completeness, {self.rule}, {self.steps} steps",
        )
        return replace(
            found,
            headline="completeness error",
            threshold=Threshold(quantity="completeness error", watch=0.05, alarm=1.0, source=SOURCE),
            summary=f"Shares miss {error.value:.2%} of the answer ({self.steps} steps). {found.summary}",
            quantities={"completeness error": error, **found.quantities},
            tables={"completeness": table, **found.tables},
            arrays={**found.arrays, "gains": found.arrays["samples"], "samples": missing / scale},
        )
