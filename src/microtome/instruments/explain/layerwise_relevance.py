"""Layer-wise relevance propagation (LRP)."""

from __future__ import annotations

from dataclasses import dataclass

from microtome.errors import Refusal
from microtome.instrument import Asking, HasSite, Independent, Instrument
from microtome.instruments.explain._faithfulness import explain, parts_dimension
from microtome.instruments.explain._relevance import amounts, balanced, map_of
from microtome.interpret.relevance import COMPOSITES
from microtome.signals.relevance import Propagated
from microtome.subject import Subject


@dataclass(frozen=True, kw_only=True)
class LayerwiseRelevance(Instrument):
    """Which parts carry the answer, handed back layer by layer?

    R_i = sum over j of (contribution of i to j) / (sum of contributions to j) * R_j from the logit s of the predicted
    class back to the input, [n, ...], in units of s, summed over the channels of a pixel or the features of a token.
    ``composite`` says what a contribution is, by kind of layer, as zennit names it: "zero" and "epsilon" (x_i w_ij),
    "epsilon-plus" (positive ones in convolutions), "epsilon-alpha2-beta1", the same with "-flat" (equal shares in the
    first layer), "epsilon-gamma-box" (needs the subject's bounds), "attention" (halves for both factors of a product).
    Rules sit on the operations of the exported program: batch-norm is merged into the map before it, residual sums
    split in proportion to their summands, gates and attention weights get nothing (see microtome.interpret.relevance).
    Conservation error |sum R - s| over the mean |s|: what biases, constants and stabilisers absorbed.
    Cost: about 3 forwards of n examples besides the 60 of the curves (Bach et al. 2015; Montavon et al. 2019).
    Misleads: where summands cancel, the epsilon rule multiplies relevance; the z+ rule asks little of upper layers
    (Sixt et al. 2020). Explain logits: a log-probability is shared out by its slope.
    """

    papers = ("interpreting-and-understanding-dnns",)
    needs = HasSite & Independent
    how_to_read = (
        "Relevance speaks for the class where it is positive and against it where it is negative. A conservation "
        "error of 40 % says that biases hold 40 % of the answer, which the map then does not show; far above 100 % "
        "the shares have blown up. Whether the map names the parts that matter is said by the gain over random."
    )

    examples: tuple[int, ...] = ()
    composite: str = "epsilon-plus"
    epsilon: float = 1e-6
    gamma: float = 0.25
    baseline: float = 0.0

    def rounds(self, subject: Subject) -> int:
        return 3

    def examine(self, subject: Subject) -> Asking:
        if self.composite not in COMPOSITES:
            raise Refusal(f"there is no composite '{self.composite}'; known: {', '.join(COMPOSITES)}")
        if self.composite == "epsilon-gamma-box" and subject.bounds is None:
            raise Refusal("the rule z^B needs the bounds of the inputs: give the subject bounds=(low, high)")
        propagated = Propagated(composite=self.composite, epsilon=self.epsilon, gamma=self.gamma)
        parts = parts_dimension(subject)
        explained = yield from explain(
            subject,
            self.examples,
            lambda score: map_of(propagated, score, parts),
            baseline=self.baseline,
            extras=amounts(propagated, "score", "total"),
        )
        _, score, total = explained.extra["balance"]
        return balanced(
            explained,
            {"score": score, "total": total},
            name="conservation error",
            caption=f"Conservation, {self.composite}",
            words="Biases, constants and stabilisers hold {} of the score, which the map does not show.",
        )
