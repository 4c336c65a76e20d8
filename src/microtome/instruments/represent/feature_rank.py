"""Effective rank of every layer's features, beside an untrained network of the same shape."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from microtome.errors import Refusal
from microtome.figures import line
from microtome.finding import Finding, Quantity, Table
from microtome.folds import Covariance
from microtome.folds.spectrum import spectrum
from microtome.instrument import Asking, HasLayers, Instrument
from microtome.signals.readout import WIDEST, narrowed, penultimate
from microtome.signals.reinitialise import Reinitialised
from microtome.subject import Subject


@dataclass(frozen=True, kw_only=True)
class FeatureRank(Instrument):
    """How many directions does each layer really use?

    From the eigenvalues of the covariance of each layer's features ([n, d], positions averaged), p = lambda /
    sum(lambda): effective rank exp(-sum p ln p) (Roy & Vetterli 2007, on variances), participation ratio
    1 / sum p^2, stable rank 1 / max p, numerical rank: singular values beyond max(n, d) eps of the largest.
    Control: the same layers with parameters drawn anew. Exact in one pass; d x d numbers a layer.
    No rank exceeds n - 1, and all are biased low unless n is many times d. A layer wider than 1024 units is
    read through a fixed random projection to 1024. Fan, Pascanu & Jaggi 2024 follow the numerical rank of
    features in training; a fall goes with the turn to generalisation there.
    """

    papers = ("deep-grokking",)
    needs = HasLayers
    how_to_read = (
        "An effective rank of 12 in a layer of 64 units means that its variance is spread as over 12 equal "
        "directions. Classification with k classes ends near k - 1. Compare with the untrained network "
        "before calling a rank low."
    )

    untrained: bool = True
    seed: int = 0

    def examine(self, subject: Subject) -> Asking:
        if subject.examples < 2:
            raise Refusal("one example has no covariance")
        layers, last = subject.representations, penultimate(subject)
        asked = {(x.name, 0): Covariance(signals=(narrowed(x),)) for x in layers}
        if self.untrained and subject.parameters:
            control = Reinitialised(self.seed)
            asked |= {(x.name, 1): Covariance(signals=(narrowed(x).at(control),)) for x in layers}
        found = yield asked
        spectra = {key: spectrum(of, subject.dtype) for key, of in found.items()}
        ranks = {key: _ranks(values) for key, values in spectra.items()}
        rows, points = [], []
        for x in layers:
            effective, participation, stable, numerical = ranks[x.name, 0]
            bare = ranks[x.name, 1][0] if (x.name, 1) in ranks else None
            rows.append((x.name, x.units, effective, participation, stable, numerical, bare))
            points.append({"layer": x.name, "rank": effective, "network": "as it is"})
            points += [{"layer": x.name, "rank": bare, "network": "untrained"}] if bare is not None else []
        effective, participation, stable, numerical = ranks[last, 0]
        units = subject.layer(last).units
        quantities = {
            "effective rank": Quantity(value=effective, unit="directions"),
            "participation ratio": Quantity(value=participation, unit="directions"),
            "stable rank": Quantity(value=stable, unit="directions"),
            "numerical rank": Quantity(value=numerical, unit="directions"),
        }
        words = ""
        if (last, 1) in ranks:
            quantities["effective rank, untrained"] = Quantity(value=ranks[last, 1][0], unit="directions")
            words = f" ({ranks[last, 1][0]:.1f} untrained)"
        short = [x.name for x in layers if x.units * 10 > subject.examples]
        caveats = (
            [f"fewer than 10 examples a unit in {len(short)} of {len(layers)} layers: their ranks read low"]
            if short
            else []
        )
        wide = [x.name for x in layers if x.units > WIDEST]
        caveats += [f"read through a random projection to {WIDEST}: {', '.join(wide)}"] if wide else []
        return Finding(
            headline="effective rank",
            summary=f"The features before the answer ({last}) spread over {effective:.1f} of "
            f"{units} directions{words}.",
            quantities=quantities,
            tables={
                "layers": Table(
                    columns=(
                        "layer",
                        "units",
                        "effective",
                        "participation",
                        "stable",
                        "numerical",
                        "untrained effective",
                    ),
                    rows=tuple(rows),
                    caption=f"Ranks of the features of {subject.examples} examples; none can exceed "
                    f"{subject.examples - 1}",
                )
            },
            figures={
                "effective rank": line(
                    "Effective rank by layer",
                    points,
                    x="layer",
                    y="rank",
                    series="network",
                    y_unit="directions",
                )
            },
            arrays={
                f"spectrum/{name}": v.numpy() for (name, untrained), v in spectra.items() if not untrained
            },
            caveats=tuple(caveats),
        )


def _ranks(values: Tensor) -> tuple[float, float, float, int]:
    """(effective, participation, stable, numerical); all 0 for a layer that does not vary."""
    kept = values[values > 0]
    if not len(kept):
        return 0.0, 0.0, 0.0, 0
    p = kept / kept.sum()
    return math.exp(float(-(p * p.log()).sum())), float(1 / p.square().sum()), float(1 / p[0]), len(kept)
