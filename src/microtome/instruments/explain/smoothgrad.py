"""SmoothGrad: gradients averaged over noisy copies."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from microtome.errors import Refusal
from microtome.finding import Finding
from microtome.instrument import Asking, HasSite, Independent, Instrument
from microtome.instruments.explain._faithfulness import explain, over_parts, parts_dimension
from microtome.signals import Signal, across, derive, gradient
from microtome.signals.variations import GaussianNoise
from microtome.subject import Subject


def _sensitivity(gradient: Tensor, *, parts: int | None) -> Tensor:
    """[n, ...] -> [n, parts ...] sum of absolute mean derivatives."""
    return over_parts(gradient.abs(), parts)


@dataclass(frozen=True, kw_only=True)
class SmoothGrad(Instrument):
    """To which parts is the answer sensitive, not at the input alone but around it?

    |mean over noisy copies of d s / d x| for the logit s of the predicted class, summed over the channels of
    a pixel or the features of a token; the noise is normal with a standard deviation of ``noise`` times the
    range (max - min) of each example (Smilkov et al. 2017, who use 0.1 to 0.2). Judged by insertion and
    deletion against a random order and an untrained network's map, as the input gradient.
    Cost: 25 backwards of n examples and 60 forwards, a third of them shared with the rest of the room.
    Misleads: much noise explains the network on inputs it never sees; the average hides parts whose
    influence changes sign nearby.
    """

    needs = HasSite & Independent
    how_to_read = (
        "Compare the gain with that of the plain input gradient: if it is not larger, smoothing made the map "
        "prettier, not truer. An untrained network's map shows how much of it is the input's own outline."
    )

    examples: tuple[int, ...] = ()
    noise: float = 0.15
    copies: int = 25
    baseline: float = 0.0
    seed: int = 0

    def rounds(self, subject: Subject) -> int:
        return 3

    def examine(self, subject: Subject) -> Asking:
        if self.copies < 1 or self.noise < 0:
            raise Refusal("smoothing needs at least one copy and noise of 0 or more")
        parts, around = parts_dimension(subject), GaussianNoise(self.copies, self.noise, self.seed)
        weights = (1 / self.copies,) * self.copies

        def relevance(score: Signal) -> Signal:
            mean = across(gradient(score, "inputs"), around, weights)
            return derive(_sensitivity, mean, parts=parts, name="smoothgrad")

        explained = yield from explain(
            subject, self.examples, relevance, baseline=self.baseline, signed=False
        )
        finding: Finding = explained.finding
        return finding
