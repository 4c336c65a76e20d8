"""The smallest change of an input that is found to change the answer, beside the nearest real example."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from microtome.errors import Refusal
from microtome.figures import rows as records
from microtome.figures import scatter
from microtome.finding import Finding, Quantity, Table
from microtome.folds import Collect, Rows, Sample, TopK
from microtome.instrument import Asking, HasClasses, HasSite, HasTargets, Independent, Instrument, OneAnswer
from microtome.instruments.reliability._pictures import picture
from microtome.signals import answer, derive, inputs, loss, rows
from microtome.signals.counterfactual import NearestOtherwise
from microtome.signals.expression import Constant
from microtome.signals.perturb import distance
from microtome.statistics import student
from microtome.subject import Subject

MOST_NUMBERS = 1 << 23
"""Numbers in the inputs of all real examples together."""


@dataclass(frozen=True, kw_only=True)
class NearestCounterfactual(Instrument):
    """What is the smallest change of the input that changes the answer?

    Of ``examples`` rows, and as many of greatest loss: the nearest x' (Euclidean, within the bounds) that is found to
    be answered by another class: steps to the tangent plane of the boundary, then along it towards x (as DeepFool,
    Moosavi-Dezfooli et al. 2016, and FAB, Croce & Hein 2020), then drawn back to it. Read: |x' - x|, its mean over
    the ``examples``. Control: the distance of the nearest real example of ``real`` that is answered otherwise, in the
    same units: a change much shorter than that is not a picture of another class but a weakness. An upper bound of the
    distance: a nearer point may exist. Integer inputs: the embedding's output moves. One pass, and ``steps``
    gradients a row for each of the ``rivals`` likeliest other classes.
    """

    needs = HasTargets & HasClasses & OneAnswer & Independent & HasSite
    how_to_read = (
        "How far an input is from being answered otherwise. Where the change is a small part of the way to the nearest "
        "real example of another answer, the network tells the classes apart by things that are not what tells them "
        "apart."
    )

    examples: int = 64
    real: int = 1000
    rivals: int = 3
    steps: int = 16
    seed: int = 0

    def rounds(self, subject: Subject) -> int:
        return 2

    def examine(self, subject: Subject) -> Asking:
        size = math.prod(subject.input_shape or (1,))
        pool = max(min(self.real, MOST_NUMBERS // size), min(self.examples, 64))
        some, worst = yield [
            Collect(signals=(rows, answer(), inputs), over=Sample(max(pool, self.examples), self.seed)),
            TopK(signals=(rows, loss, answer(), inputs), count=self.examples),
        ]
        first = Sample(self.examples, self.seed).rows(subject.examples)
        sampled = (
            torch.isin(some[0], first) if first is not None else torch.ones_like(some[0], dtype=torch.bool)
        )
        new = ~torch.isin(worst[0], some[0][sampled])
        ids, own, x = (
            torch.cat([a[sampled], b[new]]) for a, b in zip(some, (worst[0], worst[2], worst[3]), strict=True)
        )
        order = ids.argsort()
        ids, own, x = ids[order], own[order], x[order]
        move = NearestOtherwise(Constant(own, ids), self.rivals, self.steps)
        shown = picture(subject)
        pictured = [shown[1].under(move)] if shown and shown[0] in ("thumbnails", "inputs") else []
        found = yield Collect(
            signals=(
                rows,
                answer().under(move),
                derive(distance, inputs, inputs.under(move), norm="l2"),
                *pictured,
            ),
            over=Rows(tuple(ids.tolist())),
        )
        then, moved = found[1], found[2].double() * math.sqrt(size)
        crossed = then != own
        if not bool(crossed.any()):
            raise Refusal("no change that was tried changes an answer: the slopes may be zero")
        far, which = _real(x, own, some[2], some[1])
        counted = crossed & (torch.isin(ids, first) if first is not None else torch.ones_like(crossed))
        mean, low, high = student(moved[counted].numpy()) if bool(counted.any()) else (0.0, 0.0, 0.0)
        known = counted & far.isfinite()
        quantities = {
            "nearest change": Quantity(
                value=mean, unit="Euclidean distance", low=max(low, 0.0), high=high, how="t over examples",
                better="higher",
            ),
            "changed at all": Quantity(value=float(crossed.double().mean()), unit="share of examples"),
        }  # fmt: skip
        if bool(known.any()):
            share, low, high = student((moved / far)[known].numpy())
            quantities["of the way to a real one"] = Quantity(
                value=share, low=max(low, 0.0), high=high, how="t over examples", better="higher"
            )
        arrays = {
            "rows": ids[crossed].numpy(), "samples": moved[crossed].numpy(), "answers then": then[crossed].numpy(),
            "nearest real": torch.where(far.isfinite(), some[0][which], -1)[crossed].numpy(),
            "distance to a real one": torch.where(far.isfinite(), far, -1.0)[crossed].numpy(),
        } | ({"changed": found[3][crossed].numpy().astype(np.float32)} if pictured else {})  # fmt: skip
        listed = crossed.nonzero()[:, 0][moved[crossed].argsort(stable=True)[:20]]
        table = zip(*(s[listed].tolist() for s in (ids, own, then, moved, far)), strict=True)
        lines = tuple((*line[:4], line[4] if math.isfinite(line[4]) else None) for line in table)
        points = records(change=moved[known].tolist(), real=far[known].tolist())
        return Finding(
            headline="nearest change",
            summary=f"A change of length {mean:.3g} is enough on average"
            + (f", {share:.0%} of the way to a real example answered otherwise." if bool(known.any()) else "."),
            quantities=quantities,
            tables={
                "nearest": Table(
                    columns=("example", "answer", "answer then", "change", "to a real one"), rows=lines,
                    caption="Examples that the least changes",
                )
            },
            figures={
                "distances": scatter(
                    "The change against the nearest real example", points, x="real", y="change",
                    caption="Euclidean distances to an input answered otherwise, found and real.",
                )
            } if points else {},
            arrays=arrays,
            caveats=("tokens cannot be changed a little: distances are those of what the embedding gives",)
            if subject.site_layer is not None else (),
        )  # fmt: skip


def _real(
    x: torch.Tensor, own: torch.Tensor, pool: torch.Tensor, answers: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """[n] distance of the nearest real input that is answered otherwise, and its place; inf where there is none."""
    apart = torch.cdist(
        x.double().flatten(1), pool.double().flatten(1), compute_mode="donot_use_mm_for_euclid_dist"
    )
    apart[own[:, None] == answers[None]] = torch.inf
    far, which = apart.min(1)
    return far, which
