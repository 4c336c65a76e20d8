"""Guided backpropagation."""

from __future__ import annotations

from dataclasses import dataclass

from microtome.instrument import Asking, HasSite, Independent, Instrument
from microtome.instruments.explain._relevance import gated
from microtome.signals.relevance import Pulled
from microtome.subject import Subject


@dataclass(frozen=True, kw_only=True)
class GuidedBackprop(Instrument):
    """Which parts does guided backpropagation light up, and does it need the trained weights for it?

    The gradient of the logit of the predicted class, where every ReLU lets back only what is positive, through units
    that were active: g' = max(g, 0) [a > 0] (Springenberg et al. 2015), [n, ...], its size summed over the channels of
    a pixel or the features of a token. ReLUs are those of the exported program, functional and reused ones too.
    The control is the same map on a network with randomised weights: Nie et al. 2018 prove that the method recovers
    the input whatever the class, Adebayo et al. 2018 that it hardly notices randomised weights. A grade of "alarm"
    or "watch" is to be expected of the method, not of the network.
    Cost: about 4 forwards of n examples besides the 60 of the curves. Misleads: always, by its sharpness.
    """

    papers = ("theory-of-gbp-deconvnet",)
    needs = HasSite & Independent
    how_to_read = (
        "A sharp map that looks like the input is what this method gives for any network. Believe it only where it "
        "gains over a random order and clearly more than the map of the untrained network beside it."
    )

    examples: tuple[int, ...] = ()
    baseline: float = 0.0

    def rounds(self, subject: Subject) -> int:
        return 3

    def examine(self, subject: Subject) -> Asking:
        return (yield from gated(subject, self.examples, self.baseline, Pulled(gate="guided")))
