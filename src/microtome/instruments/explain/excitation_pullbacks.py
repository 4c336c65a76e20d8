"""Excitation pullbacks: gradients through soft gates."""

from __future__ import annotations

from dataclasses import dataclass

from microtome.errors import Refusal
from microtome.instrument import Asking, HasSite, Independent, Instrument
from microtome.instruments.explain._relevance import gated
from microtome.signals.relevance import Pulled
from microtome.subject import Subject


@dataclass(frozen=True, kw_only=True)
class ExcitationPullbacks(Instrument):
    """To which parts is the answer sensitive, when units count by how strongly they are excited?

    The gradient of the logit of the predicted class with sigmoid(a / T) in the place of the gate [a > 0] at every
    ReLU with pre-activation a (Satkiewicz 2025), [n, ...], its size summed over the channels of a pixel or the
    features of a token. The forward pass is untouched. T, in units of the pre-activations, is ``temperature``; at 0
    it is the gradient, for T far above them the gates are all 1/2 and the network is taken as linear.
    "likeness to the gradient": cosine with the gradient, 1 at T = 0. Max-pools and other activations are as in the
    gradient. Cost: about 4 forwards of n examples besides the 60 of the curves.
    Misleads: units that are off let signal back, so that the map is no derivative of anything the network computes;
    sharp pictures are no evidence: look at the untrained network's map. Refused without a ReLU.
    """

    papers = ("excitation-pullbacks",)
    needs = HasSite & Independent
    how_to_read = (
        "Bright parts feed units that are excited, or nearly so. The gain says whether those parts matter to the "
        "answer; the likeness to the gradient says how much the soft gates changed at all."
    )

    examples: tuple[int, ...] = ()
    temperature: float = 0.3
    baseline: float = 0.0

    def rounds(self, subject: Subject) -> int:
        return 3

    def examine(self, subject: Subject) -> Asking:
        if not self.temperature >= 0:
            raise Refusal("a temperature is 0 or positive")
        pulled = Pulled(gate="excitation", temperature=self.temperature)
        return (yield from gated(subject, self.examples, self.baseline, pulled))
