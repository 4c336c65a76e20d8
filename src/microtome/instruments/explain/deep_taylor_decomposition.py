"""Deep Taylor decomposition."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace

from microtome.finding import Threshold
from microtome.instrument import Asking, HasSite, Independent, Instrument
from microtome.instruments.explain._faithfulness import explain, mean_of, parts_dimension
from microtome.instruments.explain._relevance import amounts, balanced, map_of
from microtome.signals.relevance import Propagated
from microtome.subject import Subject

SOURCE = "Montavon et al. 2017: the decomposition is conservative; at 100 % the shares say nothing"


@dataclass(frozen=True, kw_only=True)
class DeepTaylorDecomposition(Instrument):
    """Which parts does the answer decompose into, layer by layer, at roots of each unit?

    First-order expansion of every unit's relevance at a root: the z+ rule z_ij+ / sum_i z_ij+ for units fed by ReLUs;
    in the first layer z^B when the subject has bounds (pixels), w^2 without. Relevance [n, ...] in units of the logit
    s of the predicted class, summed over the channels of a pixel or the features of a token; never negative for s > 0
    but where the input of a z+ layer is of both signs. Sums go by their positive parts; batch-norm is merged.
    Conservation error |sum R - s| over the mean |s|: 0 where every unit with relevance has a positive contribution
    (biases that are not positive are enough, Montavon et al. 2017).
    Cost: about 4 forwards of n examples besides the 60 of the curves.
    Misleads: nothing speaks against the class; the map asks little of upper layers, so that maps of two classes are
    alike (Sixt et al. 2020). Defined for s > 0; for s < 0 relevance is negative.
    """

    papers = ("deep-taylor-decomposition",)
    needs = HasSite & Independent
    how_to_read = (
        "Shares of the logit that add up to it when the conservation error is 0. They say what the units that fired "
        "were fed by, not what decided between classes: look at the gain over random and at the untrained map."
    )

    examples: tuple[int, ...] = ()
    baseline: float = 0.0

    def rounds(self, subject: Subject) -> int:
        return 3

    def examine(self, subject: Subject) -> Asking:
        propagated, parts = Propagated(composite="deep-taylor"), parts_dimension(subject)
        explained = yield from explain(
            subject,
            self.examples,
            lambda score: map_of(propagated, score, parts),
            baseline=self.baseline,
            extras=amounts(propagated, "score", "total"),
        )
        _, score, total = explained.extra["balance"]
        finding = balanced(
            explained,
            {"score": score, "total": total},
            name="conservation error",
            caption=f"Conservation, first layer {'z^B' if subject.bounds is not None else 'w^2'}",
            words="The shares miss {} of the score.",
            threshold=Threshold(quantity="conservation error", watch=0.05, alarm=1.0, source=SOURCE),
        )
        maps = finding.arrays["maps"].reshape(len(score), -1).astype(np.float64)
        size = np.abs(maps).sum(1)
        against = np.maximum(-maps, 0).sum(1) / np.where(size > 0, size, 1.0)
        below = int((score < 0).sum())
        words = (f"{below} of {len(score)} scores are negative, and so is their relevance",) if below else ()
        return replace(
            finding,
            quantities={**finding.quantities, "negative relevance": mean_of(against, better="lower")},
            caveats=(*finding.caveats, *words),
        )
