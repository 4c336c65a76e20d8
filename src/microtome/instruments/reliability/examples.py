"""Single examples: how each was answered, what it resembles, and what in it speaks for a wrong answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from microtome.errors import Refusal
from microtome.figures import rows as records
from microtome.figures import scatter
from microtome.finding import Finding, Quantity, Table
from microtome.folds import Reservoir, TopK
from microtome.instrument import Asking, HasClasses, HasLayers, HasTargets, Instrument, OneAnswer
from microtome.instruments.reliability._pictures import nearest, picture, vocabulary
from microtome.instruments.reliability._why import LARGE, bearable, why
from microtome.signals import logits, loss, rows
from microtome.signals.readout import example_labels, narrowed, penultimate
from microtome.statistics import student, wilson
from microtome.subject import Subject

MOST_BYTES = 1 << 26
WORST = 256
TOP = 5


@dataclass(frozen=True, kw_only=True)
class Examples(Instrument):
    """Which examples does it get wrong, and what do they resemble?

    Of each example: label, answer, probabilities of the five likeliest classes, loss, margin (logit of its class less
    the largest other), and its ``neighbours`` nearest others by the Euclidean distance of the features h [n, d] that
    the classifier reads; the nearest that is answered otherwise. A neighbour is foreign if its label is another.
    For the wrong answers of greatest loss: x * d(s_answer - s_label)/dx, what of the input speaks for the answer
    instead of the label, and margin / |gradient|, the length of the shortest change that would mend it if the network
    were linear there (Moosavi-Dezfooli et al. 2016). Keeps at most ``examples`` at random and the 256 of greatest
    loss, 64 MiB in all; one pass, and one over the explained. Neighbours are searched among what is kept. Distances
    in features of more than 1024 units are those of a random projection.
    """

    needs = HasTargets & HasClasses & OneAnswer & HasLayers
    how_to_read = (
        "Foreign neighbours say how mixed the classes are where an example lies: near 0 each class keeps to "
        "itself. A wrong answer among its answer's examples resembles them, or its label is doubtful; one "
        "among its own label's examples was lost at the last step."
    )

    examples: int = 10_000
    neighbours: int = 5
    explained: int = 256

    def rounds(self, subject: Subject) -> int:
        return 2

    def examine(self, subject: Subject) -> Asking:
        layer = next(x for x in subject.representations if x.name == penultimate(subject))
        shown = picture(subject)
        kept = (rows, loss, logits, example_labels(), narrowed(layer), *([shown[1]] if shown else []))
        pixels = 3 << 10 if shown else 0
        each = 8 * ((subject.classes or 0) + min(layer.units, 1024)) + pixels
        some, worst = yield [
            Reservoir(signals=kept, count=max(min(self.examples, MOST_BYTES // each), 64)),
            TopK(signals=kept, count=WORST),
        ]
        sampled = len(some[0])
        new = ~torch.isin(worst[0], some[0])
        joined = [torch.cat([a, b[new]]) for a, b in zip(some, worst, strict=True)]
        ids, lost, z, y, h = joined[:5]
        if not bool(z.isfinite().all() and h.isfinite().all()):
            raise Refusal("some outputs or features are not finite: examples cannot be put in order")
        n, answer = len(ids), z.argmax(1)
        near, distance = nearest(h, torch.full((n,), -1), self.neighbours)
        other, gap = nearest(h, answer, 1)
        foreign = (y[near] != y[:, None]).double().mean(1) if near.shape[1] else torch.zeros(n).double()
        wrong = answer != y
        p = z.double().clamp(-LARGE, LARGE).softmax(1)
        top = p.topk(min(TOP, p.shape[1]), dim=1)
        own = z.gather(1, y[:, None])[:, 0]
        margin = own - z.scatter(1, y[:, None], -torch.inf).amax(1) if z.shape[1] > 1 else own
        arrays = {
            "rows": ids, "samples": foreign, "labels": y, "answers": answer, "loss": lost.clamp(0, LARGE),
            "margin": margin.clamp(-LARGE, LARGE), "classes": top.indices, "probabilities": top.values.float(),
            "neighbours": torch.where(near >= 0, ids[near], -1), "neighbour distances": distance,
            "nearest otherwise": torch.where(other >= 0, ids[other], -1)[:, 0] if other.shape[1] else ids * 0 - 1,
            "distance to otherwise": gap[:, 0] if gap.shape[1] else ids.float() * 0,
        }  # fmt: skip
        if shown:
            arrays[shown[0]] = joined[5]
        order = torch.argsort(lost, descending=True, stable=True)
        chosen = order[wrong[order]][: bearable(subject, self.explained)]
        arrays |= yield from why(subject, ids[chosen], answer[chosen], y[chosen])
        counted = slice(0, sampled)  # the rest was kept for its loss, and would bias a mean
        mean, low, high = student(foreign[counted].numpy())
        errors = int(wrong[counted].sum())
        quantities = {
            "foreign neighbours": Quantity(
                value=mean, unit="share of neighbours", low=max(low, 0.0), high=min(high, 1.0), how="t over examples",
                better="lower",
            ),
            "errors": _share(errors, sampled),
        }  # fmt: skip
        if errors:
            siding = (y[near] == answer[:, None]).double().mean(1) > 0.5 if near.shape[1] else wrong & False
            quantities["errors whose neighbours have the answer's label"] = _share(
                int((siding & wrong)[counted].sum()), errors
            )
        columns = ("example", "label", "answer", "probability", "loss", "margin", "foreign neighbours")
        series = [ids, y, answer, top.values[:, 0], arrays["loss"], arrays["margin"], foreign]
        listed = tuple(zip(*(s[order[:20]].tolist() for s in series), strict=True))
        worst_table = Table(columns=columns, rows=listed, caption="Examples of greatest loss")
        said = f"{errors} of {sampled} are answered wrongly; {mean:.3f} of an example's {near.shape[1]} neighbours"
        said_right = ["wrong" if w else "right" for w in wrong.tolist()]
        points = records(
            confidence=top.values[:, 0].tolist(), loss=arrays["loss"].tolist(), answer=said_right
        )
        return Finding(
            headline="foreign neighbours",
            summary=f"{said} in '{layer.name}' have another label.",
            quantities=quantities,
            tables={"worst": worst_table} | vocabulary(subject, arrays.get("tokens")),
            figures={
                "loss": scatter(
                    "Loss against confidence", points, x="confidence", y="loss", series="answer", y_unit="nat",
                    caption="Above and to the right: sure and wrong.",
                )
            },
            arrays={name: _plain(value) for name, value in arrays.items()},
            caveats=(f"{n - sampled} more are kept for their loss alone",) if n > sampled else (),
        )  # fmt: skip


def _share(part: int, whole: int) -> Quantity:
    low, high = wilson(part, whole)
    return Quantity(
        value=part / whole, unit="share of examples", low=low, high=high, how="Wilson", better="lower"
    )


def _plain(value: Tensor) -> np.ndarray:
    return (
        value.numpy()
        if value.dtype in (torch.uint8, torch.int32, torch.float32, torch.int64)
        else value.double().numpy()
    )
