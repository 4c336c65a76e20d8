"""Figures: every specification has rows, finite numbers and only fields that exist; Vega-Lite accepts it."""

from __future__ import annotations

import base64
import json
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import microtome.figures as figures
from microtome.figures import figure_rows, problems
from microtome.finding import Figure

RNG = np.random.default_rng(0)


def curves() -> list[dict[str, Any]]:
    return [{"step": s, "loss": 1 / (s + 1), "seed": f"s{k}"} for k in range(2) for s in range(9)]


EXAMPLES: dict[str, Callable[[], Figure]] = {
    "line": lambda: figures.line("L", curves(), x="step", y="loss", series="seed", y_unit="nat", log_y=True),
    "line, band and rules": lambda: figures.line(
        "L",
        figures.rows(x=[0.1, 0.5], y=[0.2, 0.4], lo=[0.1, 0.3], hi=[0.3, None]),
        x="x",
        y="y",
        band=("lo", "hi"),
        diagonal=True,
        rules={"chance": 0.1},
    ),
    "line, names across": lambda: figures.line(
        "L", figures.rows(layer=["a", "b"], v=[1, 2]), x="layer", y="v"
    ),
    "line, zero on a log axis": lambda: figures.line(
        "L", figures.rows(eps=[0, 0.1, 1], v=[3, 2, 1]), x="eps", y="v", log_x=True
    ),
    "scatter": lambda: figures.scatter(
        "S",
        figures.rows(**{"net.0.weight": [1.0, 2.0], "b[0]": [3, 4], "kind": ["p", "q"], "name": ["u", "v"]}),
        x="net.0.weight",
        y="b[0]",
        series="kind",
        label="name",
        log_x=True,
        rules={"r": 3.5},
    ),
    "bars": lambda: figures.bars(
        "B",
        figures.rows(layer=["fc.1", "fc.2"], rank=[3.0, 5.0], lo=[2, 4], hi=[4, 6]),
        category="layer",
        value="rank",
        band=("lo", "hi"),
        unit="directions",
        rules={"width": 8},
    ),
    "bars, upright, log, series": lambda: figures.bars(
        "B",
        figures.rows(layer=["a", "a", "b"], n=[10, 100, 1000], kind=["x", "y", "x"]),
        category="layer",
        value="n",
        series="kind",
        horizontal=False,
        log=True,
    ),
    "histogram": lambda: figures.histogram("H", np.array([1, 2]), np.array([0.0, 0.5, 1.0]), x_unit="nat"),
    "histogram, groups": lambda: figures.histogram(
        "H", {"right": [1, 2], "wrong": [3, 4]}, [0, 1, 2], rules={"threshold": 1.5}, log_y=True
    ),
    "heatmap": lambda: figures.heatmap(
        "M", np.eye(3), row_names="abc", column_names=["x", "y", "z"], unit="%"
    ),
    "heatmap, large and holed": lambda: figures.heatmap(
        "M", np.where(RNG.random((100, 130)) < 0.1, np.nan, RNG.normal(size=(100, 130))), diverging=True
    ),
    "heatmap, constant": lambda: figures.heatmap("M", [[2, 2], [2, None]]),
    "images": lambda: figures.image_grid(
        "I",
        [[RNG.random((8, 8)), None], [RNG.random((1, 9, 9)), RNG.random((3, 300, 200))]],
        row_names=["ex 1", "ex 1"],
        column_names=["input", "map"],
        diverging=True,
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_figures_can_be_drawn(name: str) -> None:
    figure = EXAMPLES[name]()
    assert problems(figure) == []
    assert figure_rows(figure.spec)
    assert figure.title in figure.spec["description"]
    text = json.dumps(figure.spec, allow_nan=False)
    assert msgspec.json.decode(msgspec.json.encode(figure), type=Figure) == figure
    assert len(text) < 400_000


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node to run the vendored Vega-Lite")
def test_vega_lite_accepts_them(tmp_path: Path) -> None:
    vendor = Path(figures.__file__).parent / "report" / "vendor"
    specs = {name: make().spec for name, make in EXAMPLES.items()}
    (tmp_path / "specs.json").write_text(json.dumps(specs))
    script = """
      const fs = require('fs'), vm = require('vm'), [vendor, file] = process.argv.slice(2);
      globalThis.structuredClone ??= (v) => JSON.parse(JSON.stringify(v));
      for (const lib of ['vega', 'vega-lite'])
        vm.runInThisContext(fs.readFileSync(`${vendor}/${lib}.min.js`, 'utf8'));
      const said = {};
      const work = Object.entries(JSON.parse(fs.readFileSync(file))).map(async ([name, spec]) => {
        const notes = said[name] = [];
        const logger = { level: () => logger, error: (m) => notes.push(m), warn: (m) => notes.push(m),
                         info: () => logger, debug: () => logger };
        if (spec.width === 'container') spec.width = 600;
        const view = new vega.View(vega.parse(vegaLite.compile(spec, { logger }).spec), { renderer: 'none' });
        view.logger(logger);
        const svg = await view.toSVG();
        if (!svg.includes('<path') && !svg.includes('<image')) notes.push('nothing was drawn');
        if (svg.includes('NaN')) notes.push('NaN in the drawing');
        if (svg.includes('undefined')) notes.push('undefined in the drawing');
      });
      Promise.all(work).then(() => console.log(JSON.stringify(said)));
    """
    (tmp_path / "draw.cjs").write_text(script)
    command = ["node", str(tmp_path / "draw.cjs"), str(vendor), str(tmp_path / "specs.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    said = {
        name: [n for n in notes if "fit-" not in str(n)] for name, notes in json.loads(done.stdout).items()
    }
    assert said == {name: [] for name in EXAMPLES}


def test_units_stand_on_the_axes() -> None:
    spec = EXAMPLES["line"]().spec
    assert spec["layer"][-1]["encoding"]["y"]["title"] == "loss (nat)"
    assert EXAMPLES["bars"]().spec["layer"][0]["encoding"]["x"]["title"] == "rank (directions)"
    assert EXAMPLES["heatmap"]().spec["layer"][0]["encoding"]["color"]["title"] == "value (%)"
    assert EXAMPLES["histogram"]().spec["layer"][0]["encoding"]["x"]["title"] == "value (nat)"


def test_a_logarithm_of_zero_is_said() -> None:
    axis = EXAMPLES["line, zero on a log axis"]().spec["layer"][0]["encoding"]["x"]
    assert axis["scale"]["type"] == "symlog"
    assert "symmetric log" in axis["title"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: figures.line("L", [], x="a", y="b"), "'L' has no rows"),
        (lambda: figures.line("L", [{"a": 1}], x="a", y="b"), "no field 'b'"),
        (lambda: figures.line("L", [{"a": 1, "b": float("nan")}], x="a", y="b"), "'b' is nan"),
        (lambda: figures.scatter("L", [{"a": 1, "b": np.inf}], x="a", y="b"), "'b' is inf"),
        (lambda: figures.bars("L", [{"a": 1, "b": [2]}], category="a", value="b"), "holds a list"),
        (lambda: figures.rows(a=[1], b=[1, 2]), "equally long"),
        (lambda: figures.histogram("H", [1, 2], [0, 1]), "2 counts need 3 edges"),
        (lambda: figures.heatmap("M", np.zeros((0, 3))), "non-empty"),
        (lambda: figures.heatmap("M", [[np.nan]]), "every cell is empty"),
        (lambda: figures.heatmap("M", np.eye(2), row_names=["a"]), "2 rows need 2 names"),
        (lambda: figures.image_grid("I", [[np.zeros((2, 2, 2))]]), "shape"),
        (lambda: figures.image_grid("I", [[np.full((2, 2), np.nan)]]), "not finite"),
        (lambda: figures.image_grid("I", []), "no rows"),
        (lambda: figures.image_grid("I", [[np.eye(2)]], row_names=["a", "b"]), "names"),
        (lambda: figures.png(np.zeros((2, 2))), "uint8"),
    ],
)
def test_bad_data_is_refused_with_the_reason(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_many_points_are_thinned_and_it_is_said() -> None:
    data = [{"x": i, "y": i % 7, "s": i % 2} for i in range(10_001)]
    figure = figures.line("L", reversed(data), x="x", y="y", series="s")
    kept = figure_rows(figure.spec)
    assert len(kept) <= figures.MAX_POINTS
    assert {0, 1} <= {row["x"] for row in kept} and {9999, 10_000} <= {row["x"] for row in kept}
    assert "of 10001 points are drawn" in figure.caption


def test_large_matrices_become_block_means() -> None:
    table = np.arange(130.0 * 3).reshape(130, 3)
    figure = figures.heatmap("M", table, row_names=[f"n{i}" for i in range(130)])
    values = {(row["row"], row["column"]): row["value"] for row in figure_rows(figure.spec)}
    assert len(values) == 64 * 3
    assert values["n0..n2", "0"] == pytest.approx(table[:3, 0].mean())
    assert "130 x 3 cells are drawn as 64 x 3 block means" in figure.caption


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(
        np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=80), elements=st.floats(-1e6, 1e6)
    )
)
def test_any_matrix_is_drawn(table: np.ndarray) -> None:
    assert problems(figures.heatmap("M", table)) == []
    assert problems(figures.heatmap("M", table, diverging=True)) == []


def test_things_with_item_are_numbers() -> None:
    class Scalar:
        def item(self) -> float:
            return 0.25

    figure = figures.line("L", [{"a": np.int64(1), "b": Scalar()}], x="a", y="b")
    assert figure_rows(figure.spec) == [{"a": 1, "b": 0.25}]


def decode_png(data: bytes) -> np.ndarray:
    """Read back what png() writes: filter 2 only."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(data):
        (size,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + size
    width, height, depth, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert depth == 8
    channels = {0: 1, 2: 3}[colour]
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + width * channels)
    assert (lines[:, 0] == 2).all()
    pixels = np.cumsum(lines[:, 1:], axis=0, dtype=np.uint8)
    return pixels.reshape((height, width) if channels == 1 else (height, width, 3))


@settings(max_examples=40, deadline=None)
@given(st.booleans(), st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_png_round_trip(colour: bool, height: int, width: int, seed: int) -> None:
    shape = (height, width, 3) if colour else (height, width)
    pixels = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    np.testing.assert_array_equal(decode_png(figures.png(pixels)), pixels)


def test_diverging_images_are_white_at_zero() -> None:
    figure = figures.image_grid("I", [[np.array([[-1.0, 0.0, 1.0]])]], diverging=True)
    url = figure_rows(figure.spec)[0]["image"]
    pixels = decode_png(base64.b64decode(url.split(",")[1]))
    third = pixels.shape[1] // 3
    blue, white, red = (pixels[0, third * i] for i in range(3))
    assert (white == 255).all() and blue[2] > blue[0] and red[0] > red[2]


def test_problems_are_found() -> None:
    def of(spec: dict[str, Any]) -> str:
        return "; ".join(problems(Figure(title="x", spec=spec)))

    rows = {"values": [{"a": 1}]}
    coded = {"x": {"field": "b"}}
    assert "no row has" in of({"data": rows, "mark": "bar", "encoding": coded})
    assert "no rows" in of({"data": {"values": []}, "mark": "bar"})
    assert "not inline" in of({"data": {"url": "http://example.org"}, "mark": "bar"})
    assert "nothing is drawn" in of({"data": rows})
    assert "no data" in of({"mark": "bar"})
    assert "holds nan" in of({"data": {"values": [{"a": float("nan")}]}, "mark": "bar"})
    made = {
        "data": rows,
        "transform": [{"calculate": "1", "as": "b"}],
        "layer": [{"mark": "bar", "encoding": coded}],
    }
    assert of(made) == ""
