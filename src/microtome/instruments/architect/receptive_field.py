"""How much of the image each layer sees, by arithmetic on kernels, strides and paddings."""

from __future__ import annotations

from dataclasses import dataclass

from microtome.errors import Refusal
from microtome.figures import bars
from microtome.finding import Finding, Quantity, Table
from microtome.instrument import Asking, HasImages, Instrument
from microtome.interpret.cost import Cost, Field, costs_of, shapes_only
from microtome.subject import Subject

COLUMNS = ("layer", "operation", "height", "width", "stride", "starts at", "output", "share of the image")


@dataclass(frozen=True, kw_only=True)
class ReceptiveField(Instrument):
    """How much of the image can each layer see?

    Receptive field of an entry along an axis, in pixels: r <- r + (k - 1) d j after a window of kernel k,
    stride s, padding p and dilation d, where j <- s j is the distance between neighbours and
    start <- start - p j the first pixel that entry 0 sees (below 0: padding). A sum of two branches sees from
    the first start to the last end. Exact for what can be seen, read off the exported program without data;
    how strongly the pixels count is another question: their influence falls off from the centre
    (Luo et al. 2016). Sizes follow Dumoulin & Visin 2016.
    """

    papers = ("convolution-arithmetic",)
    needs = HasImages
    how_to_read = (
        "The last layer with a receptive field decides what a pattern may span before the network pools over "
        "positions or mixes them all. A field smaller than the object means that no single entry sees it whole; "
        "one larger than the image sees padding at its edges."
    )

    def examine(self, subject: Subject) -> Asking:
        yield ()  # planning captures nothing
        graph = subject.graph
        known = [cost for cost in costs_of(graph, shapes_only(graph)) if cost.field is not None]
        image = [node.shape[2:] for node in graph.inputs if node.shape is not None and len(node.shape) == 4]
        if not known or not image:
            raise Refusal("no layer sees a part of the image alone: its positions are mixed at once")
        height, width = (int(size) for size in image[0])
        lines = [_line(cost, height, width) for cost in _steps(known)]
        if not lines:
            raise Refusal("no convolution or pool was found: every entry sees one pixel")
        field = known[-1].field
        assert field is not None
        down, over = field
        share = min(down.size, height) * min(over.size, width) / (height * width)
        return Finding(
            headline="receptive field",
            summary=f"An entry of '{known[-1].node.layer or known[-1].node.name}' sees {down.size} x {over.size} "
            f"pixels of {height} x {width}; its neighbour sees as many, {down.stride:g} x {over.stride:g} further.",
            quantities={
                "receptive field": Quantity(value=max(down.size, over.size), unit="pixel"),
                "height": Quantity(value=down.size, unit="pixel"),
                "width": Quantity(value=over.size, unit="pixel"),
                "stride": Quantity(value=max(down.stride, over.stride), unit="pixel"),
                "share of the image": Quantity(value=share),
            },
            tables={"layers": Table(columns=COLUMNS, rows=tuple(lines), caption="What an entry sees")},
            figures={
                "growth": bars(
                    "Receptive field by layer",
                    [{"layer": line[0], "pixels": max(int(line[2]), int(line[3]))} for line in lines],
                    category="layer",
                    value="pixels",
                    unit="pixel",
                    rules={"image": float(max(height, width))},
                )
            },
        )


def _steps(known: list[Cost]) -> list[Cost]:
    """The operations after which an entry sees otherwise than before."""
    fields = {cost.node: cost.field for cost in known}
    found = []
    for cost in known:
        flowing = [o for o in cost.node.operands if o.kind in ("input", "operation")]
        origin = tuple(Field() for _ in cost.field or ())
        if all(fields.get(operand, origin) != cost.field for operand in flowing):
            found.append(cost)
    return found


def _line(cost: Cost, height: int, width: int) -> tuple[str | float | int, ...]:
    assert cost.field is not None
    down, over = cost.field
    share = min(down.size, height) * min(over.size, width) / (height * width)
    name = cost.node.operation.split(".")[1]
    size = " x ".join(str(s) for s in cost.shape[1:])
    step = max(down.stride, over.stride)
    return (cost.node.layer or cost.node.name, name, down.size, over.size, step, down.start, size, share)
