"""Expected calibration error, proper scores, and the temperature that would mend the confidences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from microtome.errors import Refusal
from microtome.figures import line
from microtome.finding import Finding, Quantity, Table, Threshold
from microtome.folds import Histogram, Moments, row_uniform
from microtome.folds.answers import answers
from microtome.folds.stock import MomentsResult
from microtome.instrument import Asking, HasClasses, HasTargets, Instrument
from microtome.instruments.reliability._temperature import HOTTEST, best_temperature
from microtome.signals import confidence, correct, derive, labels, loss, probabilities
from microtome.statistics import normal, wilson
from microtome.subject import Subject

DRAWS = 1000
CHANCE = "chance of such an ECE if perfectly calibrated"
LEVELS = Threshold(
    quantity=CHANCE,
    watch=0.05,
    alarm=0.001,
    worse="below",
    source="test of calibration by consistency resampling (Bröcker & Smith 2007), usual significance levels",
)
COLUMNS = ("from", "to", "predictions", "confidence", "accuracy", "low", "high")


@dataclass(frozen=True, kw_only=True)
class Calibration(Instrument):
    """Do its confidences mean what they say?

    ECE = sum_b n_b / m |accuracy_b - mean confidence_b| over ``bins`` equal bins of the largest probability
    (Naeini, Cooper & Hauskrecht 2015; Guo et al. 2017); with bins of equal mass; and the mean over classes
    of the same for each class's probability (Nixon et al. 2019). Brier score sum_k (p_k - y_k)^2 in 0..2
    (Brier 1950), negative log-likelihood in nats. Temperature: the T whose softmax(z / T) is likeliest; ECE
    after it with T from the other half of the rows. Exact over [m, k] probabilities in one pass; the
    temperature and equal-mass bins read a sample of at most 65536 predictions.
    The binned ECE is biased upwards: a perfectly calibrated network of m answers shows one too. It is
    estimated by drawing k_b ~ Binomial(n_b, mean confidence_b), and reported beside the reading. The interval
    covered 89 to 97 % where 95 were meant, in simulations of 200 to 5000 answers.
    """

    needs = HasTargets & HasClasses
    how_to_read = (
        "An error of 0.05 means that stated confidences are off by 5 points on average. Compare with what a "
        "perfectly calibrated network would show on as many examples: below that nothing is proven. A "
        "temperature above 1 says the network is too sure of itself."
    )

    bins: int = 15
    seed: int = 0

    def examine(self, subject: Subject) -> Asking:
        k, bins = subject.classes or 0, self.bins
        if k < 2:
            raise Refusal("one class leaves nothing to be sure or unsure about")
        cells = derive(_class_bins, probabilities, bins=bins)
        classwise = Histogram(
            signals=(cells, probabilities, derive(_one_hot, probabilities, labels)),
            bins=k * bins,
            low=0.0,
            high=float(k * bins),
        )
        (edges, counts, stated, right), nll, brier, gap, (ids, z, y), *per_class = yield [
            Histogram(signals=(confidence, confidence, correct), bins=bins, low=0.0, high=1.0),
            Moments(signals=(loss,)),
            Moments(signals=(derive(_brier, probabilities, labels),)),
            Moments(signals=(derive(_surplus, confidence, correct),)),
            answers(subject),
            *([classwise] if k <= 1000 else []),
        ]
        n, c, r = (t.numpy().astype(np.float64) for t in (counts, stated, right))
        ece, total = float(_ece(n, c, r)), int(n.sum())
        random = np.random.default_rng(self.seed)
        perfect, around = (
            _ece(n, c, random.binomial(n.astype(int), (share / np.maximum(n, 1)).clip(0, 1), (DRAWS, bins)))
            for share in (c, r)
        )
        floor = np.quantile(perfect, (0.025, 0.975))
        # Resampling adds the bias once more, so the lower end is reflected; it is 0 where a perfectly
        # calibrated network could show as much. The upper end is of the mean reading, never below the truth.
        high = ece + float(around.mean() - np.quantile(around, 0.025))
        low = 0.0 if ece <= floor[1] else max(2 * ece - float(np.quantile(around, 0.975)), 0.0)
        z = z.double().clamp(-1e6, 1e6)  # masked logits may be infinite
        half = row_uniform(ids, self.seed) < 0.5
        temperature, t_low, t_high = best_temperature(z, y)
        halves = [(half, ~half), (~half, half)] if 0 < int(half.sum()) < len(half) else []
        mended = torch.zeros(len(z), dtype=torch.float64)
        for fitted, read in halves:
            mended[read] = (z[read] / best_temperature(z[fitted], y[fitted])[0]).softmax(1).amax(1)
        hit = (z.argmax(1) == y).double().numpy()
        raw = z.softmax(1).amax(1).numpy()
        bias = float(gap.mean)
        gap_low, gap_high = normal(bias, float(gap.standard_error))
        quantities = {
            "ECE": Quantity(value=ece, low=min(low, ece), high=high, how="bootstrap of bins", better="lower"),
            "ECE if perfectly calibrated": Quantity(
                value=float(perfect.mean()), low=float(floor[0]), high=float(floor[1]), how="binomial draws"
            ),
            "equal-mass ECE": Quantity(value=_binned(raw, hit, _mass_edges(raw, bins)), better="lower"),
            "overconfidence": Quantity(value=bias, low=gap_low, high=gap_high, how="normal"),
            "Brier score": _mean(brier),
            "negative log-likelihood": _mean(nll, "nat"),
            "temperature": Quantity(value=temperature, low=t_low, high=t_high, how="sandwich"),
        }
        chance = (1 + int((perfect >= ece).sum())) / (DRAWS + 1)
        quantities[CHANCE] = Quantity(value=chance, how=f"{DRAWS} binomial draws")
        if per_class:
            by_class = [t.reshape(k, bins).double().numpy() for t in per_class[0][1:]]
            quantities["classwise ECE"] = Quantity(value=float(_ece(*by_class).mean()), better="lower")
        if halves:
            quantities["ECE after temperature"] = Quantity(
                value=_binned(mended.numpy(), hit, np.linspace(0, 1, bins + 1)), better="lower"
            )
        rows, points = [], []
        for b in np.flatnonzero(n):
            lower, upper = wilson(int(r[b]), int(n[b]))
            sure, hits = float(c[b] / n[b]), float(r[b] / n[b])
            rows.append((float(edges[b]), float(edges[b + 1]), int(n[b]), sure, hits, lower, upper))
            points.append({"confidence": sure, "accuracy": hits, "low": lower, "high": upper})
        caveats = []
        if not subject.task.one_answer_per_example:
            caveats.append("positions of one sequence are not independent: the intervals are too narrow")
        if len(z) < total:
            caveats.append(f"temperature and equal-mass bins read {len(z)} of {total} predictions")
        if total < 20 * bins:
            caveats.append("fewer than 20 predictions a bin: the equal-mass error is mostly bias")
        if not 1.01 / HOTTEST < temperature < 0.99 * HOTTEST:
            caveats.append(
                "no temperature is the likeliest here: the one given is the end of the range tried"
            )
        advice = (
            f"the likelihood asks for a temperature of {temperature:.2f}"
            if not t_low <= 1 <= t_high
            else "no temperature is called for"
        )
        verdict = "more than" if ece > floor[1] else "no more than"
        return Finding(
            headline="ECE",
            threshold=LEVELS,
            summary=f"Confidences are off by {ece:.3f} on average, {verdict} chance explains "
            f"({floor[1]:.3f}); {advice}.",
            quantities=quantities,
            tables={
                "bins": Table(
                    columns=COLUMNS,
                    rows=tuple(rows),
                    caption="Reliability by bin of confidence, with Wilson's interval",
                )
            },
            figures={
                "reliability": line(
                    "Reliability",
                    points,
                    x="confidence",
                    y="accuracy",
                    band=("low", "high"),
                    diagonal=True,
                    caption="On the diagonal, confidence is accuracy; below it the network is too sure.",
                )
            },
            arrays={"counts": n, "confidence": c, "correct": r},
            caveats=tuple(caveats),
        )


def _class_bins(probabilities: Tensor, bins: int) -> Tensor:
    """[m, k]: the middle of the cell of (class, bin), so that no rounding moves it to another."""
    classes = torch.arange(probabilities.shape[1], device=probabilities.device)
    return classes * bins + (probabilities * bins).long().clamp(0, bins - 1) + 0.5


def _one_hot(probabilities: Tensor, labels: Tensor) -> Tensor:
    return torch.zeros_like(probabilities).scatter_(1, labels[:, None], 1.0)


def _brier(probabilities: Tensor, labels: Tensor) -> Tensor:
    p = probabilities.double()
    return p.square().sum(1) - 2 * p.gather(1, labels[:, None])[:, 0] + 1


def _surplus(confidence: Tensor, correct: Tensor) -> Tensor:
    return confidence.double() - correct


def _ece(n: np.ndarray, confidence: np.ndarray, right: np.ndarray) -> Any:
    """From counts and sums in bins along the last axis."""
    return np.abs(right - confidence).sum(-1) / n.sum(-1)


def _mass_edges(confidence: np.ndarray, bins: int) -> np.ndarray:
    return np.unique(np.quantile(confidence, np.linspace(0, 1, bins + 1)))


def _binned(confidence: np.ndarray, right: np.ndarray, edges: np.ndarray) -> float:
    place = np.searchsorted(edges[1:-1], confidence, side="right")
    n, c, r = (np.bincount(place, w) for w in (np.ones_like(right), confidence, right))
    return float(_ece(n, c, r))


def _mean(of: MomentsResult, unit: str = "1") -> Quantity:
    low, high = normal(float(of.mean), float(of.standard_error))
    return Quantity(
        value=float(of.mean), unit=unit, low=max(low, 0.0), high=high, how="normal", better="lower"
    )
