"""EVA: explanations from verified perturbations."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from msgspec.structs import replace

from microtome.finding import Finding
from microtome.instrument import Asking, HasSite, Independent, Instrument
from microtome.instruments.explain._faithfulness import explain, parts_dimension
from microtome.signals.bounds import MOST_WORK, Method, work_of
from microtome.signals.interpretation import interpreted
from microtome.signals.verified_patches import VerifiedPatches
from microtome.subject import Subject


@dataclass(frozen=True, kw_only=True)
class EVA(Instrument):
    """Which parts of the input can do most against the answer, over all small changes and not a sample of them?

    EVA (Fel et al. 2023): a_p = A(B) - A(B with patch p frozen) [n, patches], where B holds all |x' - x|_inf <= r
    within the bounds and A bounds the worst max_j (logit_j - logit_c) over it, c the predicted class. The patch
    without which the bound falls most matters most. r = ``radius`` of the input range (without known bounds: of
    each example's own range); patches are the cells of ``grid`` x ``grid``, or runs of as many numbers or tokens.
    A is found by ``method``: "interval" (IBP), "mixed" (CROWN-IBP) or "linear" (CROWN; exact for linear networks);
    where an example has several answers, by intervals.
    Judged as every map of this room: insertion and deletion against a random order and an untrained network.
    Cost: grid^2 + 1 bounds of n examples, for the network and its untrained copy: 3 forwards each by intervals,
    about 10 and one a class by "mixed", hundreds by linear bounds of deep networks. Where that may be more than
    ``most_work`` operations, intervals are taken.
    Misleads: where bounds are loose the map says which patches loosen them most, a property of the weights more
    than of this input; ``security/bound_tightness`` tells.
    """

    papers = ("eva",)
    needs = HasSite & Independent
    how_to_read = (
        "The gain says how much sooner the answer comes when the parts are shown in the map's order than in a random "
        "one. The map rests on every input of the ball, but only as tightly as the bounds: for deep networks they "
        "are loose, and a map no better than an untrained network's shows it."
    )

    examples: tuple[int, ...] = ()
    radius: float = 0.5
    grid: int = 8
    method: Method = "mixed"
    most_work: float = MOST_WORK
    baseline: float = 0.0

    def rounds(self, subject: Subject) -> int:
        return 3

    def examine(self, subject: Subject) -> Asking:
        explained = yield from explain(
            subject, self.examples, lambda score: interpreted(self._patches(subject), score),
            baseline=self.baseline, signed=False,
        )  # fmt: skip
        finding: Finding = explained.finding
        if self._patches(subject).method == self.method:
            return finding
        several = subject.task.categorical and not subject.task.one_answer_per_example
        why = (
            "several answers an example"
            if several
            else f"more than {self.most_work:.0e} operations otherwise"
        )
        return replace(
            finding, caveats=(*finding.caveats, f"{why}: bounded by intervals, not by '{self.method}'")
        )

    def _patches(self, subject: Subject) -> VerifiedPatches:
        """What is asked of the program; by intervals where its answers or the work leave no choice."""
        made = VerifiedPatches(self.radius, self.grid, parts_dimension(subject), self.method)
        if subject.task.categorical and not subject.task.one_answer_per_example:
            return dataclasses.replace(made, method="interval")
        balls = (
            2 * min(len(self.examples) or 16, subject.examples) * (self.grid**2 + 1)
        )  # an untrained copy's too
        rows = max((subject.classes or 2) - 1, 1)
        dear = balls * work_of(subject.graph, self.method, rows) > self.most_work
        return dataclasses.replace(made, method="interval") if dear else made
