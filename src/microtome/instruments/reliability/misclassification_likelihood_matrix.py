"""Which classes drift into which, from distances between softmax vectors and class centroids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from microtome.errors import Refusal
from microtome.figures import heatmap
from microtome.finding import Finding, Quantity, Table
from microtome.folds import row_uniform
from microtome.folds.answers import answers, log_odds
from microtome.instrument import Asking, HasClasses, HasTargets, Instrument
from microtome.instruments.reliability._centroids import confusions, correlation, group_means
from microtome.statistics import aurc, aurc_resamples, selective_risks, spearman
from microtome.subject import Subject

MOST_CLASSES = 2000


@dataclass(frozen=True, kw_only=True)
class MisclassificationLikelihoodMatrix(Instrument):
    """Do distances in softmax space tell which classes will be confused, and when to abstain?

    On one half of the rows (by their hash): centroid c_j = mean softmax vector of the examples of class j
    that were answered right; D_ij = mean Euclidean distance of all examples of class i to c_j; likelihood
    L_ij = (1 / D_ij) / sum over j' != i of 1 / D_ij', [k, k]. On the other half: Spearman correlation of L
    with the shares really confused, off the diagonal (control: with the confusions of the first half, which
    need no distances); AURC of abstaining by distance to the answered class's centroid, against max
    softmax; and the paper's thresholds, for each answered class the smallest distance of a wrong answer.
    Sikar et al. 2024; here a row of the matrix is the true class, and both halves are of the same data.
    Reads at most 65536 predictions. With few errors most cells are 0 and the correlation says little.
    """

    papers = ("misclassification-likelihood-matrix",)
    needs = HasTargets & HasClasses
    how_to_read = (
        "The gain is how much AURC falls when answers are withheld by distance instead of by max softmax: "
        "the method is worth its name only where that is above 0. Agreement near 1 says that the matrix "
        "ranks confusions as they happen; compare it with the control."
    )

    seed: int = 0

    def examine(self, subject: Subject) -> Asking:
        k = subject.classes or 0
        if not 2 <= k <= MOST_CLASSES:
            raise Refusal(f"a matrix of {k} classes is not taken: 2 to {MOST_CLASSES}")
        ids, z, y = yield answers(subject)
        p, answered = z.double().softmax(1), z.argmax(1)
        right, fit = answered == y, row_uniform(ids, self.seed) < 0.5
        count, centroids = group_means(p[fit & right], y[fit & right], k)
        known = count > 0
        if not bool(known[answered[~fit]].any()) or int((~fit).sum()) < 2:
            raise Refusal("too few right answers to put centroids anywhere and judge them on other rows")
        distance = torch.cdist(p, centroids, compute_mode="donot_use_mm_for_euclid_dist")
        rows, mean_distance = group_means(distance[fit], y[fit], k)
        inverse = mean_distance.clamp_min(1e-12).reciprocal() * known * (rows > 0)[:, None]
        inverse.fill_diagonal_(0)
        likelihood = inverse / inverse.sum(1, keepdim=True).clamp_min(1e-300)
        happened, control = (confusions(y[part], answered[part], k) for part in (~fit, fit))
        cells = known & (rows > 0)[:, None] & (torch.bincount(y[~fit], minlength=k) > 0)[:, None]
        cells.fill_diagonal_(False)
        predicted, seen, first = (t[cells].numpy() for t in (likelihood, happened, control))
        agreement = spearman(predicted, seen) if len(seen) > 1 else None

        judged = ~fit & known[answered]
        own = distance.gather(1, answered[:, None])[:, 0]
        error = (~right[judged]).numpy().astype(np.float64)
        pair = np.stack([log_odds(z[judged]).numpy(), -own[judged].numpy()])
        softmax_area, distance_area = (float(a) for a in aurc(pair, error))
        spread = aurc_resamples(pair, error, seed=self.seed)
        low, high = (float(q) for q in np.quantile(spread[0] - spread[1], (0.025, 0.975)))
        wrong = fit & ~right
        limit = torch.full((k,), torch.inf, dtype=torch.float64)
        limit = limit.scatter_reduce(0, answered[wrong], own[wrong], "amin")
        kept = (own < limit[answered])[judged].numpy()
        left = float(error[kept].mean()) if kept.any() else 0.0
        same = float(selective_risks(pair[:1], error)[0, int(kept.sum()) - 1]) if kept.any() else 0.0
        quantities = {
            "abstention gain": Quantity(
                value=softmax_area - distance_area,
                low=low,
                high=high,
                how="paired Poisson bootstrap",
                better="higher",
            ),
            "AURC by distance": Quantity(value=distance_area, better="lower"),
            "AURC by max softmax": Quantity(value=softmax_area, better="lower"),
            "kept by thresholds": Quantity(value=float(kept.mean()), better="higher"),
            "error rate of the kept": Quantity(value=left, better="lower"),
            "the same share by max softmax": Quantity(value=same, better="lower"),
        }
        caveats = []
        mistakes = int(error.sum())
        if agreement is None:
            caveats.append("no confusion to agree with in the judged half")
        else:
            quantities["agreement"] = correlation(agreement, len(seen))
            repeated = spearman(first, seen)
            if repeated is not None:
                quantities["agreement of earlier confusions"] = Quantity(value=repeated)
        if mistakes < 30:
            caveats.append(f"only {mistakes} errors in the judged half")
        if not bool(known.all()):
            caveats.append(
                f"{int((~known).sum())} classes have no right answer in the first half, and no centroid"
            )
        far = likelihood.flatten().argsort(descending=True)[:10]
        worst = tuple(
            (
                int(i) // k,
                int(i) % k,
                float(mean_distance.flatten()[i]),
                float(likelihood.flatten()[i]),
                float(happened.flatten()[i]),
            )
            for i in far
            if float(likelihood.flatten()[i]) > 0
        )
        names = [str(c) for c in range(k)]
        return Finding(
            headline="abstention gain",
            summary=f"Withholding answers far from their centroid has AURC {distance_area:.2g}, "
            f"withholding by max softmax {softmax_area:.2g}.",
            quantities=quantities,
            tables={
                "likeliest": Table(
                    columns=("class", "drifts into", "mean distance", "likelihood", "share that did"),
                    rows=worst,
                    caption="Likeliest by distance, and how often each happened in the other half",
                )
            },
            figures={}
            if k > 100
            else {
                "matrix": heatmap(
                    "Likelihood that a class drifts into another",
                    likelihood.numpy(),
                    row_names=names,
                    column_names=names,
                    row_title="class",
                    column_title="drifts into",
                    value_title="likelihood",
                )
            },
            arrays={
                "likelihood": likelihood.numpy(),
                "distances": mean_distance.numpy(),
                "centroids": centroids.numpy(),
            },
            caveats=tuple(caveats),
        )
