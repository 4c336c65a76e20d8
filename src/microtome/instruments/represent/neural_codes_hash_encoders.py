"""Binary activation codes: does every example have one of its own, and do they tell classes?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from microtome.errors import Refusal
from microtome.figures import line
from microtome.finding import Finding, Quantity, Table
from microtome.folds import Reservoir
from microtome.instrument import Asking, HasLayers, Instrument
from microtome.signals import activation, derive, rows
from microtome.signals.noise import row_uniform
from microtome.signals.readout import example_labels
from microtome.signals.reinitialise import Reinitialised
from microtome.statistics import wilson
from microtome.subject import Layer, Subject

_SIGNED = ("relu", "elu", "silu", "mish", "hardswish", "threshold")
"""Parts of the names of activations whose values have the sign of what goes in (or are 0)."""


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
        layers = [x for x in subject.layers if x.kind == "activation" and _named(x, _SIGNED)]
        if not layers:
            raise Refusal("no ReLU-like activation is seen: there are no on/off patterns")
        labelled = subject.task.one_answer_per_example and subject.has_targets
        asked = {}
        for i in range(2 if self.untrained and subject.parameters else 1):
            codes = [derive(_bits, activation(x.name), bits=self.bits, seed=self.seed) for x in layers]
            codes = [c.at(Reinitialised(self.seed)) for c in codes] if i else codes
            signals = (rows, *([example_labels()] if labelled else []), *codes)
            asked["untrained" if i else "this network"] = Reservoir(
                signals=signals, count=self.count, seed=self.seed
            )
        found = yield asked
        n = len(found["this network"][0])
        if n < 2:
            raise Refusal("one example has nothing to be told apart from")
        names = [x.name for x in layers]
        read = {
            who: _read(values[1:], labelled, min(self.neighbours, n - 1)) for who, values in found.items()
        }
        table, points = [], []
        for i, name in enumerate([*names, "whole network"]):
            (shared, accuracy, purity), bare = (
                read["this network"][i],
                read.get("untrained", [(None, None, None)] * (i + 1))[i],
            )
            bits = found["this network"][1 + labelled + i].shape[1] if i < len(layers) else None
            table.append((name, bits, shared, bare[0], accuracy, bare[1], purity, bare[2]))
            for who, value in (("this network", accuracy), ("untrained", bare[1])):
                points += [{"layer": name, "accuracy": value, "codes of": who}] if value is not None else []
        shared, accuracy, purity = read["this network"][-1]
        bare = read.get("untrained", [(None, None, None)])[-1]
        low, high = wilson(round(shared * n), n)
        quantities = {
            "redundancy": Quantity(
                value=shared, unit="share of examples", low=low, high=high, how="Wilson", better="lower"
            )
        }
        if bare[0] is not None:
            quantities["redundancy, untrained"] = Quantity(value=bare[0], unit="share of examples")
        words = ""
        if accuracy is not None and purity is not None:
            low, high = wilson(round(accuracy * n), n)
            quantities["nearest-code accuracy"] = Quantity(
                value=accuracy, low=low, high=high, how="Wilson", better="higher"
            )
            quantities["purity"] = Quantity(value=purity, unit="share of neighbours", better="higher")
            words = f"; the {self.neighbours} nearest codes name its class with accuracy {accuracy:.3f}"
            if bare[1] is not None:
                quantities["nearest-code accuracy, untrained"] = Quantity(value=bare[1])
                words += f" ({bare[1]:.3f} untrained)"
        smooth = [x.name for x in layers if not _named(x, ("relu", "threshold"))]
        cut = [x.name for x in layers if x.elements > self.bits]
        caveats = (
            [
                f"{len(cut)} of {len(layers)} layers are read at {self.bits} random places: "
                f"redundancy is an upper bound"
            ]
            if cut
            else []
        )
        caveats += ["smooth activations have no linear regions: codes are sign patterns"] if smooth else []
        return Finding(
            headline="redundancy",
            summary=f"{100 * shared:.1f} % of {n} examples share their activation pattern with an "
            f"earlier one{words}.",
            quantities=quantities,
            tables={
                "layers": Table(
                    columns=(
                        "layer",
                        "bits",
                        "redundancy",
                        "untrained redundancy",
                        "accuracy",
                        "untrained accuracy",
                        "purity",
                        "untrained purity",
                    ),
                    rows=tuple(table),
                    caption="In order of the network",
                )
            },
            figures={
                "categorisation": line(
                    "Nearest-code accuracy by layer", points, x="layer", y="accuracy", series="codes of"
                )
            }
            if points
            else {},
            caveats=tuple(caveats),
        )


def _named(layer: Layer, parts: tuple[str, ...]) -> bool:
    return any(part in layer.operation.lower() for part in parts)


def _bits(activation: Tensor, bits: int, seed: int) -> Tensor:
    """[n, b] 1 where a value is above 0."""
    flat = activation.reshape(activation.shape[0], -1)
    if flat.shape[1] > bits:
        flat = flat[:, _places(flat.shape[1], bits, seed).to(flat.device)]
    return (flat > 0).to(torch.uint8)


@lru_cache(maxsize=64)
def _places(size: int, bits: int, seed: int) -> Tensor:
    return row_uniform(torch.arange(size), seed, 41).topk(bits, largest=False).indices.sort().values


def _read(
    values: tuple[Tensor, ...], labelled: bool, neighbours: int
) -> list[tuple[float, float | None, float | None]]:
    """(redundancy, accuracy, purity) of each layer and, last, of all together."""
    labels = values[0] if labelled else None
    whole: Tensor | None = None
    read = []
    for code in values[labelled:]:
        sign = code.float() * 2 - 1
        distance = (code.shape[1] - sign @ sign.T) / 2  # [n, n] exact: small integers
        whole = distance if whole is None else whole + distance
        read.append(_one(distance, labels, neighbours))
    assert whole is not None
    return [*read, _one(whole, labels, neighbours)]


def _one(
    distance: Tensor, labels: Tensor | None, neighbours: int
) -> tuple[float, float | None, float | None]:
    n = len(distance)
    shared = float((distance == 0).tril(-1).any(1).double().mean())
    if labels is None:
        return shared, None, None
    # Ties go to the smaller id, so that the order of rows in a batch cannot matter.
    key = distance.double() * n + torch.arange(n)
    key.fill_diagonal_(torch.inf)
    near = labels[key.topk(neighbours, dim=1, largest=False).indices]  # [n, neighbours], nearest first
    votes = torch.zeros(n, int(labels.max()) + 1, dtype=torch.float64)
    weight = 1 - torch.arange(neighbours, dtype=torch.float64) / (
        100 * neighbours**2
    )  # ties of votes go to the nearer
    votes.scatter_add_(1, near, weight.expand(n, -1))
    return (
        shared,
        float((votes.argmax(1) == labels).double().mean()),
        float((near == labels[:, None]).double().mean()),
    )
