"""Binary activation codes: does every example have one of its own, and do they tell classes?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from microtome.errors import Refusal
from microtome.figures import line
from microtome.finding import Finding, Quantity, Table
from microtome.folds import Reservoir
from microtome.instrument import Asking, HasLayers, Instrument
from microtome.signals import rows
from microtome.signals.codes import nearest_votes, on_off, piecewise_linear, repeated_share, switches
from microtome.signals.readout import example_labels
from microtome.signals.reinitialise import Reinitialised
from microtome.statistics import wilson
from microtome.subject import Subject


@dataclass(frozen=True, kw_only=True)
class NeuralCodes(Instrument):
    """Do on/off patterns identify examples, and do near patterns mean the same class?

    Code: one bit for each value of an activation function, 1 where above 0; the network's code joins its
    layers (He, Lei, Ji & Tao 2021). Redundancy ratio (n - distinct codes) / n: share of examples that share
    their linear region. Categorisation: accuracy of the majority of the 9 nearest other codes (Hamming),
    and purity, the mean share of these of the example's class. Control: the same with parameters drawn
    anew, for wide random networks identify examples too; only the gain in categorisation was learned. On a
    fixed random sample of examples; a layer of more than ``bits`` values is read at that many fixed random
    places, so redundancy is an upper bound. One pass; n^2 bits operations a layer.
    """

    papers = ("neural-codes-hash-encoders",)
    needs = HasLayers
    how_to_read = (
        "A redundancy near 0 means the pattern of active units alone identifies almost every example. "
        "Nearest-code accuracy is meaningful only beside the untrained network's: inputs that are easy to "
        "match keep their neighbours there too."
    )

    count: int = 400
    bits: int = 256
    neighbours: int = 9
    untrained: bool = True
    seed: int = 0

    def examine(self, subject: Subject) -> Asking:
        layers = switches(subject)
        if not layers:
            raise Refusal("no ReLU-like activation is seen: there are no on/off patterns")
        labelled = subject.task.one_answer_per_example and subject.has_targets
        label = [example_labels()] if labelled else []
        codes = [on_off(x.name, self.bits, self.seed) for x in layers]
        asked = {"this network": Reservoir(signals=(rows, *label, *codes), count=self.count, seed=self.seed)}
        if self.untrained and subject.parameters:
            codes = [code.at(Reinitialised(self.seed)) for code in codes]
            asked["untrained"] = Reservoir(signals=(rows, *label, *codes), count=self.count, seed=self.seed)
        found = yield asked
        n = len(found["this network"][0])
        if n < 2:
            raise Refusal("one example has nothing to be told apart from")
        near = min(self.neighbours, n - 1)
        read = {who: _read(values[1:], labelled, near) for who, values in found.items()}
        mine, bare = read["this network"], read.get("untrained", [_Reading()] * (len(layers) + 1))
        names = [*(x.name for x in layers), "whole network"]
        bits = [*(min(x.elements, self.bits) for x in layers), None]
        table, points = [], []
        for name, size, one, other in zip(names, bits, mine, bare, strict=True):
            table.append((name, size, *(cell for pair in zip(one, other, strict=True) for cell in pair)))
            both = (("this network", one.accuracy), ("untrained", other.accuracy))
            points += [{"layer": name, "accuracy": v, "codes of": who} for who, v in both if v is not None]
        units = {"redundancy": "share of examples", "accuracy": "1", "purity": "share of neighbours"}
        quantities = {}
        for key, unit in units.items():
            value, control = getattr(mine[-1], key), getattr(bare[-1], key)
            if value is not None:
                low, high = wilson(round(value * n), n) if key != "purity" else (None, None)
                better: Literal["lower", "higher"] = "lower" if key == "redundancy" else "higher"
                how = "Wilson" if low is not None else ""
                name = key.replace("accuracy", "nearest-code accuracy")
                quantities[name] = Quantity(
                    value=value, unit=unit, low=low, high=high, how=how, better=better
                )
                if control is not None:
                    quantities[f"{name}, untrained"] = Quantity(value=control, unit=unit)
        repeated = 100 * quantities["redundancy"].value
        words = f"{repeated:.1f} % of {n} examples share their activation pattern with an earlier one"
        if mine[-1].accuracy is not None:
            words += f"; the {near} nearest codes name the class with accuracy {mine[-1].accuracy:.3f}"
            words += f" ({bare[-1].accuracy:.3f} untrained)" if bare[-1].accuracy is not None else ""
        cut = sum(x.elements > self.bits for x in layers)
        places = f"{cut} of {len(layers)} layers are read at {self.bits} random places"
        caveats = [f"{places}: redundancy is an upper bound"] if cut else []
        if not all(map(piecewise_linear, layers)):
            caveats.append("smooth activations have no linear regions: codes are sign patterns")
        columns = ("layer", "bits", *(f"{who}{key}" for key in units for who in ("", "untrained ")))
        figures = {}
        if points:
            title = "Nearest-code accuracy by layer"
            figures["categorisation"] = line(title, points, x="layer", y="accuracy", series="codes of")
        return Finding(
            headline="redundancy",
            summary=f"{words}.",
            quantities=quantities,
            tables={"layers": Table(columns=columns, rows=tuple(table), caption="In order of the network")},
            figures=figures,
            caveats=tuple(caveats),
        )


class _Reading(NamedTuple):
    redundancy: float | None = None
    accuracy: float | None = None
    purity: float | None = None


def _read(values: tuple[Tensor, ...], labelled: bool, neighbours: int) -> list[_Reading]:
    """Of each layer's codes [n, b] and, last, of all together."""
    signs = [code.float() * 2 - 1 for code in values[labelled:]]
    distances = [(sign.shape[1] - sign @ sign.T) / 2 for sign in signs]  # [n, n], whole numbers: exact
    distances.append(torch.stack(distances).sum(0))
    votes = [nearest_votes(d, values[0], neighbours) if labelled else (None, None) for d in distances]
    return [_Reading(repeated_share(d), *vote) for d, vote in zip(distances, votes, strict=True)]
