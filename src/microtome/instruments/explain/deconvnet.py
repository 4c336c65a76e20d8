"""DeconvNet projections."""

from __future__ import annotations

from dataclasses import dataclass

from microtome.instrument import Asking, HasSite, Independent, Instrument
from microtome.instruments.explain._relevance import gated
from microtome.signals.relevance import Pulled
from microtome.subject import Subject


@dataclass(frozen=True, kw_only=True)
class DeconvNet(Instrument):
    """Which parts does a deconvolutional network project the answer back to?

    The signal of the predicted class's logit is sent back through transposed layers and max-pools with their switches;
    a ReLU lets back what is positive, whether the unit was active or not: g' = max(g, 0) (Zeiler and Fergus 2014),
    [n, ...], its size summed over the channels of a pixel or the features of a token.
    Without max-pools the map does not depend on the input at all but through batch statistics and products.
    The control is the same map on a network with randomised weights (Nie et al. 2018).
    Cost: about 4 forwards of n examples besides the 60 of the curves.
    Misleads: it shows what the weights respond to, not what this input gave them.
    """

    papers = ("zeiler-fergus-visualisation", "theory-of-gbp-deconvnet")
    needs = HasSite & Independent
    how_to_read = (
        "Compare with the untrained network's map beside it, and with the map of another example: where they are the "
        "same, the map is about the architecture. The gain says whether the parts matter to the answer."
    )

    examples: tuple[int, ...] = ()
    baseline: float = 0.0

    def rounds(self, subject: Subject) -> int:
        return 3

    def examine(self, subject: Subject) -> Asking:
        return (yield from gated(subject, self.examples, self.baseline, Pulled(gate="deconvnet")))
