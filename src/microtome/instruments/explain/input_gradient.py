"""Input gradients (saliency)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from microtome.finding import Finding
from microtome.instrument import Asking, HasSite, Independent, Instrument
from microtome.instruments.explain._faithfulness import explain, over_parts, parts_dimension
from microtome.signals import derive, gradient
from microtome.subject import Subject


def _sensitivity(gradient: Tensor, *, parts: int | None) -> Tensor:
    """[n, ...] -> [n, parts ...] sum of absolute derivatives."""
    return over_parts(gradient.abs(), parts)


@dataclass(frozen=True, kw_only=True)
class InputGradient(Instrument):
    """To which parts of the input is the answer most sensitive?

    |d s / d x| of the logit s of the predicted class, [n, ...], summed over the channels of a pixel or the
    features of a token (Simonyan et al. 2014). Judged by insertion and deletion (Petsiuk et al. 2018): the
    area between the two curves less that of a random order, in units of the whole effect (0: no better than
    chance, 1: the first part alone decides), beside the map of an untrained network (Adebayo et al. 2018).
    Cost: one backward of n examples and 60 forwards, a third of them shared with the rest of the room.
    Misleads: sensitivity is not contribution: where the logit saturates the gradient is small though the
    part decides, and removed parts leave inputs the network never saw.
    """

    papers = ("falsifiable-interpretability",)
    needs = HasSite & Independent
    how_to_read = (
        "The gain says how much sooner the answer comes when the parts are shown in the map's order than in "
        "a random one. A map is worth looking at when its gain is clearly above that of an untrained network."
    )

    examples: tuple[int, ...] = ()
    baseline: float = 0.0

    def rounds(self, subject: Subject) -> int:
        return 3

    def examine(self, subject: Subject) -> Asking:
        parts = parts_dimension(subject)
        explained = yield from explain(
            subject,
            self.examples,
            lambda score: derive(_sensitivity, gradient(score, "inputs"), parts=parts, name="input_gradient"),
            baseline=self.baseline,
            signed=False,
        )
        finding: Finding = explained.finding
        return finding
