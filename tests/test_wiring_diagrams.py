"""The wiring diagram: sound XML for every family, boxes that do not overlap, nothing a name can break."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import msgspec
import pytest
import torch
from interpret_zoo import MODELS, build
from torch import nn

from microtome.drawing import drawing, svg
from microtome.figures import problems
from microtome.finding import Examination, Figure, Finding, Quantity, decode_examination, encode_json
from microtome.interpret import capture
from microtome.interpret.layout import Frame, Item, arrange
from microtome.interpret.shape import program_shape
from microtome.interpret.wiring import _draft, levels, wiring, wiring_figure
from microtome.report import report_html
from microtome.store import open_store

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("name", MODELS)
def test_every_family_is_drawn(name: str) -> None:
    model, args = build(name)
    graph = capture(model, args)
    for depth in (0, 1, None):
        root = ElementTree.fromstring(wiring(graph, depth))
        width, height = (float(x) for x in root.attrib["viewBox"].split()[2:])
        for box in root.iter(f"{SVG}rect"):
            x, y, w, h = (float(box.attrib[key]) for key in ("x", "y", "width", "height"))
            assert x >= 0 and y >= 0 and x + w <= width + 0.2 and y + h <= height + 0.2
        assert root.find(f"{SVG}title") is not None and root.find(f"{SVG}desc") is not None


def _items(frame: Frame, x: float, y: float):
    for part in frame.parts:
        if isinstance(part, Frame):
            yield from _items(part, x + part.x, y + part.y)
        yield part, (x + part.x, y + part.y, x + part.x + part.width, y + part.y + part.height)


@pytest.mark.parametrize("name", MODELS)
def test_boxes_do_not_overlap_and_wires_go_down(name: str) -> None:
    model, args = build(name)
    root, wires, _ = _draft(capture(model, args), 99)
    arrange(root, wires, bare=True)
    found = list(_items(root, 0, 0))
    for i, (part, (x0, y0, x1, y1)) in enumerate(found):
        for other, (a0, b0, a1, b1) in found[i + 1 :]:
            apart = x1 <= a0 + 1e-6 or a1 <= x0 + 1e-6 or y1 <= b0 + 1e-6 or b1 <= y0 + 1e-6
            inside = isinstance(part, Frame) or isinstance(other, Frame)
            assert apart or inside, (part, other)
    places = {part: corner for part, corner in found if isinstance(part, Item)}
    for start, end in wires:
        assert places[start][3] <= places[end][1]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map, self.norm = nn.Linear(6, 6), nn.LayerNorm(6)

    def forward(self, x):
        return x + self.norm(self.map(x)).relu()


def test_blocks_in_a_row_are_drawn_once() -> None:
    model = nn.Sequential(*[Block() for _ in range(12)], nn.Linear(6, 2))
    graph = capture(model, (torch.rand(3, 6),))
    picture = wiring(graph)
    assert "× 12" in picture
    assert picture.count(">layer_norm<") == 1
    assert levels(graph) == 2
    shape = program_shape(graph)
    assert (shape.operations, shape.depth, shape.merges, shape.learned) == (49, 49, 12, 25)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    folded = wiring(graph, 0)
    assert "4 operations, 54 parameters" in folded and "layer_norm" not in re.sub(
        "<desc>.*?</desc>", "", folded
    )


def test_a_block_that_differs_is_not_taken_for_the_same() -> None:
    wide = Block()
    wide.map = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 6))
    graph = capture(nn.Sequential(Block(), Block(), wide, Block()), (torch.rand(3, 6),))
    picture = wiring(graph)
    assert "× 2" in picture and picture.count(">layer_norm<") == 3


def test_names_cannot_break_it() -> None:
    model = nn.Sequential()
    model.add_module("a<b>&", nn.Linear(3, 3))
    model.add_module("</title><script>", nn.ReLU())
    picture = wiring(capture(model, (torch.rand(2, 3),)), title="<script>alert(1)</script>")
    ElementTree.fromstring(picture)
    assert "<script" not in picture and "a&lt;b&gt;&amp;" in picture


def _exam(figure: Figure) -> Examination:
    finding = Finding(
        instrument="architect/wiring", headline="n", summary="s", quantities={"n": Quantity(value=1)},
        figures={"wiring": figure},
    )  # fmt: skip
    return Examination(
        id="e", created="2000-01-01T00:00:00+00:00", subject={}, findings={"architect/wiring": finding}
    )


def test_it_survives_saving_and_the_report_shows_it(tmp_path) -> None:
    model, args = build("digits_cnn")
    figure = wiring_figure(capture(model, args), title="Wiring of <it>")
    assert problems(figure) == []
    exam = _exam(figure)
    assert decode_examination(encode_json(exam)).findings["architect/wiring"].figures["wiring"] == figure
    with open_store(tmp_path) as store:
        store.save(exam)
        assert store.load("e")["wiring"].figures["wiring"] == figure
    page = report_html(exam)
    assert svg(figure) in page and "Wiring of &lt;it&gt;" in page


@pytest.mark.parametrize(
    "shape",
    [
        {"box": [0, 0, 1, 1, 0], "is": '"><script>'},
        {"line": 'M0 0"/><script>', "is": "axis"},
        {"box": [0, 0, "1", 1, 0], "is": "frame"},
        {"box": [0, 0, float("nan"), 1, 0], "is": "frame"},
        {"words": "no place", "is": "name"},
    ],
)
def test_a_forged_drawing_is_not_shown(shape) -> None:
    honest = drawing("t", "a", (10, 10), [])
    forged = msgspec.structs.replace(honest, spec={"drawing": honest.spec["drawing"] | {"shapes": [shape]}})
    assert problems(forged)
    assert "<svg" not in report_html(_exam(forged)).split("<main>")[1].split("</main>")[0]
