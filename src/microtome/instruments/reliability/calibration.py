"""Expected calibration error, proper scores, and the temperature that would mend the confidences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from microtome.errors import Refusal
from microtome.figures import line
from microtome.finding import Finding, Quantity, Table, Threshold
from microtome.folds import Histogram, Moments, row_uniform
from microtome.folds.answers import answers
from microtome.instrument import Asking, HasClasses, HasTargets, Instrument
from microtome.instruments.reliability._binning import (
    bin_rows,
    binned,
    brier,
    class_bins,
    ece_of,
    mass_edges,
    mean_score,
    one_hot,
    resampled_ece,
    surplus,
)  # fmt: skip
from microtome.instruments.reliability._temperature import HOTTEST, best_temperature
from microtome.signals import confidence, correct, derive, labels, loss, probabilities
from microtome.statistics import normal
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
        cells = derive(class_bins, probabilities, bins=bins)
        classwise = Histogram(
            signals=(cells, probabilities, derive(one_hot, probabilities, labels)),
            bins=k * bins,
            low=0.0,
            high=float(k * bins),
        )
        (edges, counts, stated, right), nll, squares, gap, (ids, z, y), *per_class = yield [
            Histogram(signals=(confidence, confidence, correct), bins=bins, low=0.0, high=1.0),
            Moments(signals=(loss,)),
            Moments(signals=(derive(brier, probabilities, labels),)),
            Moments(signals=(derive(surplus, confidence, correct),)),
            answers(subject),
            *([classwise] if k <= 1000 else []),
        ]
        n, c, r = (t.numpy().astype(np.float64) for t in (counts, stated, right))
        ece, low, high, perfect = resampled_ece(n, c, r, DRAWS, self.seed)
        floor, total = np.quantile(perfect, (0.025, 0.975)), int(n.sum())
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
            "ECE": Quantity(value=ece, low=low, high=high, how="bootstrap of bins", better="lower"),
            "ECE if perfectly calibrated": Quantity(
                value=float(perfect.mean()), low=float(floor[0]), high=float(floor[1]), how="binomial draws"
            ),
            "equal-mass ECE": Quantity(value=binned(raw, hit, mass_edges(raw, bins)), better="lower"),
            "overconfidence": Quantity(value=bias, low=gap_low, high=gap_high, how="normal"),
            "Brier score": mean_score(squares),
            "negative log-likelihood": mean_score(nll, "nat"),
            "temperature": Quantity(value=temperature, low=t_low, high=t_high, how="sandwich"),
        }
        chance = (1 + int((perfect >= ece).sum())) / (DRAWS + 1)
        quantities[CHANCE] = Quantity(value=chance, how=f"{DRAWS} binomial draws")
        if per_class:
            by_class = [t.reshape(k, bins).double().numpy() for t in per_class[0][1:]]
            quantities["classwise ECE"] = Quantity(value=float(ece_of(*by_class).mean()), better="lower")
        if halves:
            quantities["ECE after temperature"] = Quantity(
                value=binned(mended.numpy(), hit, np.linspace(0, 1, bins + 1)), better="lower"
            )
        rows = bin_rows(edges.tolist(), n, c, r)
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
                    rows=rows,
                    caption="Reliability by bin of confidence, with Wilson's interval",
                )
            },
            figures={
                "reliability": line(
                    "Reliability",
                    [dict(zip(COLUMNS[3:], row[3:], strict=True)) for row in rows],
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
