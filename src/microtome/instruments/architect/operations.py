"""The operations of the exported program, and what each of them counts, moves and takes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from microtome.errors import Refusal
from microtome.figures import bars
from microtome.finding import Finding, Quantity, Table
from microtome.folds import Moments, Sample
from microtome.instrument import Asking, Instrument
from microtome.interpret.cost import operation_nodes
from microtome.signals import derive, rows
from microtome.signals.interpretation import interpreted
from microtome.signals.timing import OperationCosts
from microtome.subject import Subject

KINDS = ("operation", "calls", "FLOP", "other", "bytes", "FLOP a byte", "uJ", "ms")
NODES = ("layer", "operation", "output", "FLOP", "other", "bytes", "uJ", "ms")


@dataclass(frozen=True, kw_only=True)
class Operations(Instrument):
    """Which operations does the network consist of, and what does each cost?

    Of the exported program, operation by operation, an example of a call with ``examples`` rows: products as
    torch's counter counts them (FLOP, two a multiply-add), other operations (one an entry of the result),
    bytes that an unfused program reads and writes (weights once a call), milliseconds as the median of
    ``repeats`` runs on this machine, and an energy proxy: Horowitz's 45 nm figures (ISSCC 2014), 4.6 pJ a
    multiply-add in float32, 0.9 pJ another operation, 162.5 pJ a byte from DRAM. ``compress/cost`` has the same
    FLOP by layer, without export.
    """

    how_to_read = (
        "Counts and bytes are exact for the program as it is written; compilers that fuse operations move fewer "
        "bytes. The energy is a ranking by published figures, not a measurement. Milliseconds are of this "
        "machine at this moment, and of each operation alone."
    )
    deterministic = False

    examples: int = 32
    repeats: int = 5
    seed: int = 0

    def examine(self, subject: Subject) -> Asking:
        asked = derive(_an_example, interpreted(OperationCosts(self.repeats)), rows)
        found = yield Moments(signals=(asked,), over=Sample(self.examples, self.seed))
        nodes = operation_nodes(subject.graph)
        if found.mean.shape[0] != len(nodes):
            raise Refusal("the program differs from batch to batch")
        lines: list[tuple[Any, ...]] = [
            (node.layer, node.operation.split(".")[1], _shape(node.shape), *_units(costs))
            for node, costs in zip(nodes, found.mean.tolist(), strict=True)
        ]
        kinds: dict[str, list[tuple[float, ...]]] = defaultdict(list)
        for line in lines:
            kinds[str(line[1])].append(tuple(float(x) for x in line[3:]))
        sums = {kind: [sum(column) for column in zip(*every, strict=True)] for kind, every in kinds.items()}
        order = sorted(sums, key=lambda kind: -sums[kind][3])
        table = [
            (k, len(kinds[k]), *sums[k][:3], sums[k][0] / sums[k][2] if sums[k][2] else None, *sums[k][3:])
            for k in order
        ]
        flops, other, moved, energy, taken = (sum(column) for column in zip(*sums.values(), strict=True))
        first = order[0]
        share = sums[first][3] / energy if energy else 0.0
        return Finding(
            headline="energy",
            summary=f"{len(lines)} operations of {len(order)} kinds: {flops:,.0f} FLOP and {moved:,.0f} bytes an "
            f"example. {100 * share:.0f}% of the energy proxy goes into '{first}'.",
            quantities={
                "energy": Quantity(value=energy, unit="uJ/example", better="lower"),
                "operations": Quantity(value=flops, unit="FLOP/example", better="lower"),
                "other operations": Quantity(value=other, unit="1/example", better="lower"),
                "bytes": Quantity(value=moved, unit="byte/example", better="lower"),
                "time": Quantity(value=taken, unit="ms/example", better="lower"),
                "kinds": Quantity(value=len(order)),
            },
            tables={
                "kinds": Table(columns=KINDS, rows=tuple(table), caption="An example, by kind of operation"),
                "operations": Table(columns=NODES, rows=tuple(lines), caption="In order of execution"),
            },
            figures={
                "energy": bars(
                    "Energy proxy by kind of operation",
                    [{"operation": k, "uJ": sums[k][3]} for k in order[:20]],
                    category="operation",
                    value="uJ",
                    unit="uJ",
                )
            },
        )


def _shape(shape: tuple[int | str, ...] | None) -> str:
    return " x ".join(str(size) if isinstance(size, int) else "n" for size in shape or ())


def _units(costs: list[float]) -> tuple[float, ...]:
    flops, other, moved, energy, seconds = costs
    return flops, other, moved, 1e-6 * energy, 1e3 * seconds


def _an_example(interpreted: Tensor, rows: Tensor) -> Tensor:
    """[1, operations, 5] of a slice become those of an example."""
    return interpreted.cpu() / max(len(rows), 1)
