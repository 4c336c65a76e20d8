"""The network's wiring, drawn from its exported program."""

from __future__ import annotations

from dataclasses import dataclass

from microtome.finding import Finding, Quantity, Table
from microtome.instrument import Asking, Instrument
from microtome.interpret.shape import program_shape
from microtome.interpret.wiring import wiring_levels
from microtome.subject import Subject


@dataclass(frozen=True, kw_only=True)
class Wiring(Instrument):
    """How is the network wired?

    A diagram of the exported program: modules as frames, operations as boxes, every axis of a tensor as one
    wire with its size (n is the batch), blocks that repeat in a row drawn once. Numbers: operations that give
    tensors; depth, the most operations on a way from an input to the output; merges, operations that join two or
    more values of the inputs; learned maps, operations that read a parameter. Exact, from the program alone, no pass
    over the data. After Abbott 2024.
    """

    papers = ("neural-circuit-diagrams",)
    how_to_read = (
        "Read it from top to bottom; the dashed wire is the batch, a box's own words are its module, operation "
        "and parameters, and pointing at it says more. It is the program that was exported in eval mode: what the "
        "network does only in training is not in it."
    )

    drawings: int = 4
    """At most so many are drawn: the outermost modules alone, then one more level opened each, at last all."""

    def examine(self, subject: Subject) -> Asking:
        yield ()  # planning captures nothing
        graph = subject.graph
        shape = program_shape(graph)
        rows = tuple((name, count) for name, count in shape.kinds.items())
        return Finding(
            headline="operations",
            summary=f"{shape.operations} operations of {len(shape.kinds)} kinds, at most {shape.depth} in a row, with "
            f"{shape.merges} merges and {shape.parameters:,} parameters.",
            quantities={
                "operations": Quantity(value=shape.operations),
                "depth": Quantity(value=shape.depth),
                "merges": Quantity(value=shape.merges),
                "learned maps": Quantity(value=shape.learned),
                "parameters": Quantity(value=shape.parameters),
            },
            tables={"kinds": Table(columns=("operation", "times"), rows=rows, caption="Kinds of operation")},
            figures=wiring_levels(graph, self.drawings, subject.name),
            caveats=graph.notes,
        )
