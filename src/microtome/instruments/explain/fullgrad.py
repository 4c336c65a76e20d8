"""FullGrad: the input's part and the biases' part of an answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace

from microtome.finding import Threshold
from microtome.instrument import Asking, HasSite, Independent, Instrument
from microtome.instruments.explain._faithfulness import explain, mean_of, parts_dimension
from microtome.instruments.explain._relevance import amounts, balanced, map_of
from microtome.signals.relevance import Complete
from microtome.subject import Subject

SOURCE = "Srinivas and Fleuret 2019, proposition 1: exact for ReLU networks; at 100 % the sum says nothing"


@dataclass(frozen=True, kw_only=True)
class FullGrad(Instrument):
    """Which parts carry the answer, when the biases are counted where they act?

    s(x) = <x, ds/dx> + sum over biases of <b, ds/dz>, with z the result that b is added to: biases of convolutions
    and dense layers, beta - mean * scale of batch-norm, constant summands (Srinivas and Fleuret 2019), for the logit s
    of the predicted class. The map of an image [n, h, w] is the sum over the input and over all layers with places of
    |part| brought to 0..1, enlarged bilinearly and summed over channels; for other inputs |x ds/dx|, since biases have
    no place there. Completeness error |sum - s| over the mean |s|: rounding for networks of ReLUs, maxima and means;
    for smooth ones (GELU, softmax, layer-norm) what their implicit biases hold.
    Cost: about 4 forwards of n examples besides the 60 of the curves.
    Misleads: the map takes sizes, so that it does not say for or against; its layers are brought to one scale, so that
    a layer that contributes little counts as much as another. The sum is complete, the map is not.
    """

    papers = ("fullgrad",)
    needs = HasSite & Independent
    how_to_read = (
        "The completeness error says whether input and biases add up to the answer; above rounding, smooth operations "
        "hold the rest. The part of the biases is what a map of the input alone would leave out."
    )

    examples: tuple[int, ...] = ()
    baseline: float = 0.0

    def rounds(self, subject: Subject) -> int:
        return 3

    def examine(self, subject: Subject) -> Asking:
        complete = Complete()
        pictures = (
            subject.input_shape is not None and len(subject.input_shape) == 3 and subject.site_layer is None
        )
        parts = None if pictures else parts_dimension(subject)
        explained = yield from explain(
            subject,
            self.examples,
            lambda score: map_of(complete, score, parts),
            baseline=self.baseline,
            signed=False,
            extras=amounts(complete, "score", "inputs", "biases"),
        )
        _, score, inputs, biases = explained.extra["balance"]
        finding = balanced(
            explained,
            {"score": score, "inputs": inputs, "biases": biases, "total": inputs + biases},
            name="completeness error",
            caption="Completeness",
            words="Input and biases miss {} of the score.",
            threshold=Threshold(quantity="completeness error", watch=0.05, alarm=1.0, source=SOURCE),
        )
        share = np.abs(biases.numpy()) / float(score.abs().mean())
        held = {"part of the biases": mean_of(share)}
        return replace(finding, quantities={**finding.quantities, **held})
