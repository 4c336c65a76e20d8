"""Parameters, operations, bytes and time by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from microtome.figures import bars
from microtome.finding import Finding, Quantity, Table
from microtome.folds import Moments, Sample
from microtome.instrument import Asking, Instrument
from microtome.signals import derive, profile, rows
from microtome.subject import Subject

COLUMNS = (
    "layer",
    "kind",
    "parameters",
    "operations",
    "weight bytes",
    "activation bytes",
    "operations a byte",
    "ms",
)


@dataclass(frozen=True, kw_only=True)
class Cost(Instrument):
    """What does an answer cost, and which layers cost it?

    Parameters p; operations (FLOPs) an example by torch's own counter: 2 a multiply-add of matrix products
    and convolutions, nothing for the rest; bytes of weights and of activations an example, in the types they
    are kept in; milliseconds an example, median of 3, in slices of ``examples`` and of one, on this machine.
    A layer used twice owns its weights once. "elsewhere" is what no layer did: operations between layers,
    and for time also the cost of watching. Operations per byte (weights and activations moved once) tell
    what is bound by memory: below some ten on common hardware (Williams, Waterman & Patterson 2009).
    Time is not repeatable to better than some 10 %, and layers of a few microseconds not at all.
    """

    how_to_read = (
        "Operations and bytes are exact and the same on every machine; milliseconds are of this machine, "
        "at this moment. A layer with many operations is worth making smaller, one with few operations a "
        "byte is worth storing in fewer bits."
    )
    deterministic = False

    examples: int = 32
    seed: int = 0

    def examine(self, subject: Subject) -> Asking:
        many, one = yield [
            Moments(signals=(derive(_an_example, profile(), rows),), over=Sample(count, self.seed))
            for count in (self.examples, 1)
        ]
        flops, seconds = many.mean[:, 0].tolist(), many.mean[:, 1].tolist()
        alone = float(one.mean[-1, 1])
        size = torch.empty(0, dtype=subject.dtype).element_size()
        owned: set[str] = set()
        lines: list[tuple[Any, ...]] = []
        for i, layer in enumerate(subject.layers):
            fresh = [t for n, t in subject.parameters.items() if n in layer.parameters and n not in owned]
            owned.update(layer.parameters)
            weights = sum(t.numel() * t.element_size() for t in fresh)
            moved = weights + layer.elements * size
            lines.append(
                (
                    layer.name,
                    layer.kind,
                    sum(t.numel() for t in fresh),
                    round(flops[i]),
                    weights,
                    layer.elements * size,
                    flops[i] / moved if moved else None,
                    1e3 * seconds[i],
                )
            )
        rest = [t for n, t in subject.parameters.items() if n not in owned]
        spare = sum(t.numel() * t.element_size() for t in rest)
        apart = max(round(flops[-1] - sum(flops[:-1])), 0)
        gap = 1e3 * max(seconds[-1] - sum(seconds[:-1]), 0.0)
        lines.append(("elsewhere", "", sum(t.numel() for t in rest), apart, spare, 0, None, gap))
        count = subject.parameter_count
        weights = sum(t.numel() * t.element_size() for t in subject.parameters.values())
        activations = sum(layer.elements for layer in subject.layers) * size
        caveats = []
        if abs(sum(flops[:-1]) - flops[-1]) > 0.01 * flops[-1] and sum(flops[:-1]) > flops[-1]:
            caveats.append("some layers run inside others: their operations and times are in both lines")
        if flops[-1] == 0:
            caveats.append("no operation that torch counts was seen")
        drawn = sorted(lines, key=lambda line: -line[3])[:24]
        return Finding(
            headline="operations",
            summary=f"{count:,} parameters, {flops[-1]:,.0f} operations an example; "
            f"{1e3 * alone:.2g} ms alone, {1e3 * seconds[-1]:.2g} ms in slices of at most {self.examples}.",
            quantities={
                "operations": Quantity(value=flops[-1], unit="FLOP/example", better="lower"),
                "parameters": Quantity(value=count, better="lower"),
                "weights": Quantity(value=weights, unit="byte", better="lower"),
                "activations": Quantity(value=activations, unit="byte/example", better="lower"),
                "latency alone": Quantity(value=1e3 * alone, unit="ms", better="lower"),
                "time an example": Quantity(value=1e3 * seconds[-1], unit="ms", better="lower"),
            },
            tables={
                "layers": Table(
                    columns=COLUMNS,
                    rows=tuple(lines),
                    caption="An example, by layer, in the order of the calls",
                )
            },
            figures={
                "operations": bars(
                    "Operations an example",
                    [{"layer": x[0], "operations": x[3]} for x in drawn if x[3] or not flops[-1]],
                    category="layer",
                    value="operations",
                    unit="FLOP",
                )
            },
            caveats=tuple(caveats),
        )


def _an_example(profile: Tensor, rows: Tensor) -> Tensor:
    """[1, layers + 1, 2]: seconds a slice become seconds an example."""
    share = torch.tensor([1.0, 1.0 / max(len(rows), 1)], dtype=profile.dtype)
    return (profile.cpu() * share)[None]
