"""XGrad-CAM: class activation maps that keep the axioms of sensitivity and conservation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from msgspec.structs import replace
from torch import Tensor

from microtome.errors import Refusal
from microtome.folds import Collect, Fold, Selection
from microtome.instrument import Asking, HasImages, Independent, Instrument
from microtome.instruments.explain._faithfulness import explain, mean_of
from microtome.signals import Constant, Signal, activation, class_score, derive, gradient, rows
from microtome.subject import Layer, Subject


def _cam(maps: Tensor, gradient: Tensor) -> Tensor:
    """[n, c, h, w] twice -> [n, h, w] sum over channels of weight times map, before the ReLU."""
    total = maps.sum((2, 3))
    # A channel that is (nearly) nothing in sum has no mean gradient to speak of; it gets no weight.
    alive = total.abs() > 1e-6 * maps.abs().sum((2, 3))
    weights = torch.where(alive, (gradient * maps).sum((2, 3)) / torch.where(alive, total, 1.0), 0.0)
    return torch.einsum("nc,nchw->nhw", weights, maps)


def _enlarged(cam: Tensor, *, size: tuple[int, int]) -> Tensor:
    """[n, h, w] -> [n, *size], positive part, bilinear."""
    return F.interpolate(cam.relu()[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def _total(cam: Tensor) -> Tensor:
    """[n, h, w] -> [n]."""
    return cam.double().sum((1, 2))


def last_maps(subject: Subject, name: str) -> Layer:
    """The layer named, or the last finished value on the grid of the last convolution.

    Raises:
        Refusal: when there is none.
    """
    grids = [x for x in subject.layers if len(x.shape) == 3 and x.feature_dimension == 1]
    if name:
        if name not in {x.name for x in grids}:
            raise Refusal(f"'{name}' is not a layer of maps [channels, height, width]")
        return subject.layer(name)
    convolutions = [x for x in grids if x.kind == "convolution"]
    if not convolutions:
        raise Refusal("no convolution with maps [channels, height, width] was found")
    last = convolutions[-1]
    after = grids[grids.index(last) :]
    return [x for x in after if x.shape[1:] == last.shape[1:] and (x.representation or x is last)][-1]


@dataclass(frozen=True, kw_only=True)
class XGradCAM(Instrument):
    """Where in the picture is the evidence, by the maps of the last convolution?

    ReLU(sum_c w_c A_c) with w_c = sum_ij (ds/dA_cij * A_cij) / sum_ij A_cij for the logit s of the predicted
    class and maps A [n, c, h, w] (Fu et al. 2020), enlarged to the input bilinearly. Before the ReLU its sum
    is sum A ds/dA; the conservation error |sum - s| / mean |s| is what biases and bends after that layer make
    of it (0 for pooling and a linear head without bias). Judged by insertion and deletion.
    Cost: one backward of n examples and 60 forwards, a third of them shared with the rest of the room.
    Misleads: a map of 4 x 4 cells enlarged to the picture is no finer than its cells, and a cell sees more
    than its own place.
    """

    papers = ("xgrad-cam",)
    needs = HasImages & Independent
    how_to_read = (
        "Bright places raise the class. The gain says whether showing those places first brings the answer "
        "sooner than a random order of pixels; a coarse map can win here only by places, not by pixels."
    )

    examples: tuple[int, ...] = ()
    layer: str = ""
    baseline: float = 0.0

    def rounds(self, subject: Subject) -> int:
        return 3

    def examine(self, subject: Subject) -> Asking:
        layer = last_maps(subject, self.layer)
        assert subject.input_shape is not None
        _, height, width = subject.input_shape

        def cam(score: Signal) -> Signal:
            return derive(_cam, activation(layer.name), gradient(score, layer.name), name="cam")

        def relevance(score: Signal) -> Signal:
            return derive(_enlarged, cam(score), size=(height, width), name="xgrad_cam")

        def kept(classes: Constant, over: Selection) -> Mapping[str, Fold]:
            score = class_score(classes)
            return {"kept": Collect(signals=(rows, derive(_total, cam(score), name="sum"), score), over=over)}

        explained = yield from explain(
            subject, self.examples, relevance, baseline=self.baseline, signed=False, extras=kept
        )
        found = explained.finding
        _, total, score = explained.extra["kept"]
        scale = float(score.double().abs().mean())
        quantities = dict(found.quantities)
        if scale > 0:
            gap = (total - score).double().abs().numpy() / scale
            quantities["conservation error"] = mean_of(gap, better="lower")
        _, h, w = layer.shape
        note = f"maps of '{layer.name}', {h} x {w} cells"
        if not np.any(found.arrays["maps"]):
            raise Refusal(f"no evidence for the class is positive in '{layer.name}'")
        return replace(
            found,
            quantities=quantities,
            summary=f"{found.summary[:-1]} ({note}).",
            caveats=(*found.caveats, note),
        )
