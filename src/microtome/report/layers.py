"""Layers: all that any finding says of one, brought together by the layer's name.

A finding speaks of layers where a table has a column "layer", or "weights" or "tensor" (whose names end in the
tensor's), and where an array is called "something/layer". Nothing here knows which instrument that was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from microtome.drawing import is_drawing, svg
from microtome.figures import figure_rows
from microtome.finding import Cell, Examination, Figure, Finding, Table, format_number
from microtome.report.text import number_text

KEYS = ("layer", "weights", "tensor")
MOST_NARROW = 2
"""Layers of few directions that are named as evidence."""
NOT_LAYERS = frozenset(("", "elsewhere", "all together", "whole network"))


@dataclass(frozen=True)
class Measure:
    """A column of the matrix: which tables have it, and what it says in a line."""

    label: str
    columns: frozenset[str]
    """A table with all of these has it."""
    value: str
    says: str
    of: str = ""
    """The column with the layer's name, where it is not one of the usual."""


MEASURES = (
    Measure("parameters", frozenset(("layer", "parameters", "operations")), "parameters", "numbers it has learned"),
    Measure(
        "operations", frozenset(("layer", "parameters", "operations")), "operations",
        "floating-point operations an example: its cost",
    ),
    Measure(
        "effective rank", frozenset(("layer", "units", "effective")), "effective",
        "directions its output really uses, of as many as it has units",
    ),
    Measure("dead units", frozenset(("layer", "units", "dead")), "dead", "units that are 0 on every example"),
    Measure(
        "CKA to the layer before", frozenset(("CKA", "layer", "with")), "CKA",
        "1: it gives its input on unchanged, up to rotation and scale", of="with",
    ),
    Measure(
        "probe accuracy", frozenset(("layer", "accuracy", "random labels")), "accuracy",
        "how well a linear reader tells the classes from its output",
    ),
    Measure(
        "gradient", frozenset(("tensor", "mean gradient")), "mean gradient",
        "norm of the mean gradient of the loss in its weights",
    ),
    Measure(
        "prunable", frozenset(("weights", "count", "prunable")), "prunable",
        "share of its weights that can be set to 0 alone, within the accuracy that may be lost",
    ),
    Measure(
        "fewest bits", frozenset(("weights", "count", "fewest bits")), "fewest bits",
        "bits a weight it can be rounded to alone, within the accuracy that may be lost",
    ),
    Measure("stretch", frozenset(("layer", "factor")), "factor", "most it can enlarge a change of its input"),
)  # fmt: skip


@dataclass
class Layer:
    """One layer, with every row that speaks of it."""

    name: str
    kind: str = ""
    values: dict[str, float] = field(default_factory=dict)
    """By label of a measure."""
    sections: list[dict[str, Any]] = field(default_factory=list)
    """Finding, caption, columns and this layer's rows."""


def layers(exam: Examination) -> list[Layer]:
    """Every layer that is spoken of, in the network's order as far as a table tells it."""
    tables = [(f, t, key) for f, t in _tables(exam) for key in KEYS if key in t.columns]
    by_layer = [(f, t, key) for f, t, key in tables if key == "layer"]
    order = max((list(_names(t, "layer")) for _, t, _ in by_layer), key=len, default=[])
    for _, table, _ in by_layer:
        order += [name for name in _names(table, "layer") if name not in set(order)]
    found = {name: Layer(name) for name in dict.fromkeys(order)}
    for f, table, key in tables:
        rows: dict[str, list[tuple[Cell, ...]]] = {}
        at = table.columns.index(key)
        for row in table.rows:
            owner = _owner(str(row[at]), found)
            if owner:
                rows.setdefault(owner, []).append(row)
        for name, mine in rows.items():
            section = {
                "finding": f.instrument,
                "caption": table.caption,
                "columns": table.columns,
                "rows": mine,
            }
            found[name].sections.append(section)
            for column in ("kind", "operation"):
                if column in table.columns and not found[name].kind:
                    found[name].kind = str(mine[0][table.columns.index(column)] or "")
    for measure in MEASURES:
        _read(measure, exam, found)
    return list(found.values())


def _read(measure: Measure, exam: Examination, found: dict[str, Layer]) -> None:
    for _, table in _tables(exam):
        if not measure.columns <= set(table.columns):
            continue
        key = measure.of or next(k for k in KEYS if k in table.columns)
        at, value = table.columns.index(key), table.columns.index(measure.value)
        for row in table.rows:
            owner, number = _owner(str(row[at]), found), row[value]
            if owner and isinstance(number, int | float):
                found[owner].values.setdefault(measure.label, float(number))
        return


def _tables(exam: Examination) -> Iterator[tuple[Finding, Table]]:
    for f in exam:
        if f.status == "measured":
            for key, table in f.tables.items():
                if key != "trajectory":
                    yield f, table


def _names(table: Table, key: str) -> Iterator[str]:
    at = table.columns.index(key)
    return (str(row[at]) for row in table.rows if row[at] is not None and str(row[at]) not in NOT_LAYERS)


def _owner(name: str, known: dict[str, Layer]) -> str:
    if name in known:
        return name
    parent = name.rpartition(".")[0]
    return parent if parent in known else ""


def matrix(found: Sequence[Layer]) -> dict[str, Any]:
    """Layers down, measures across, each cell with its place among its column's: 0 lowest to 4 highest."""
    used = [m for m in MEASURES if any(m.label in layer.values for layer in found)]
    columns = []
    for m in used:
        numbers = sorted({layer.values[m.label] for layer in found if m.label in layer.values})
        last = max(len(numbers) - 1, 1)
        columns.append({value: 4 * i // last if len(numbers) > 1 else 0 for i, value in enumerate(numbers)})
    return {
        "measures": used,
        "rows": [
            (layer, [_cell(layer.values.get(m.label), place) for m, place in zip(used, columns, strict=True)])
            for layer in found
            if layer.values  # the rest is reached from the diagram
        ],
    }


def _cell(value: float | None, place: dict[float, int]) -> tuple[str, int]:
    return ("–", -1) if value is None else (number_text(value), place[value])


def wasteful(exam: Examination) -> list[dict[str, Any]]:
    """Layers with weights by how large a share of all weights can be spared in each alone, with the evidence.

    A layer speaks together with what follows it up to the next layer with weights (its normalisation, its
    activation): a dead unit of the activation is a unit of the layer that nothing needs.
    """
    groups: list[tuple[Layer, list[Layer]]] = []
    belongs = False
    for layer in layers(exam):
        if "prunable" in layer.values:
            groups.append((layer, [layer]))
            belongs = True
        elif layer.values.get("parameters") and "norm" not in layer.kind.lower():
            belongs = False  # weights of its own, of which nothing is known
        elif belongs:
            groups[-1][1].append(layer)
    counts = [_count(layer) for layer, _ in groups]
    everything, work = sum(counts), sum(layer.values.get("operations", 0.0) for layer, _ in groups)
    found = []
    for (layer, members), count in zip(groups, counts, strict=True):
        share = layer.values["prunable"]
        parts = [f"{share:.0%} of its {number_text(count)} weights can go alone"]
        spared = share * count / everything if everything else 0.0
        parts[0] += f", {spared:.0%} of all weights" if everything else ""
        if work and "operations" in layer.values:
            parts.append(f"it takes {layer.values['operations'] / work:.0%} of the operations")
        narrow = []
        for member in members:
            units = _of(member, "units")
            if member.values.get("dead units") and units:
                parts.append(
                    f"{format_number(member.values['dead units'])} of {format_number(units)} units are dead"
                )
            rank = member.values.get("effective rank")
            if rank is not None and units and rank / units < 0.25:
                narrow.append(
                    (rank / units, f"{member.name} uses {rank:.1f} of {format_number(units)} directions")
                )
        parts += [said for _, said in sorted(narrow)[:MOST_NARROW]]
        found.append(
            {
                "layer": layer.name,
                "spared": spared,
                "parts": parts,
                "said": f"{layer.name}: {'; '.join(parts)}.",
            }
        )
    return sorted(found, key=lambda each: -each["spared"])


def _count(layer: Layer) -> float:
    return _of(layer, "count") or layer.values.get("parameters", 0.0)


def _of(layer: Layer, column: str) -> float | None:
    for section in layer.sections:
        if column in section["columns"]:
            number = section["rows"][0][section["columns"].index(column)]
            if isinstance(number, int | float):
                return float(number)
    return None


def wiring(exam: Examination, found: Sequence[Layer]) -> tuple[str, str]:
    """The most detailed drawing with its boxes named after layers, as SVG, and its title; empty without one."""
    known = {layer.name for layer in found}
    drawings = [g for f in exam for g in f.figures.values() if is_drawing(g)]
    for figure in sorted(drawings, key=_boxes, reverse=True):
        # A stored finding may hold anything.
        with suppress(KeyError, TypeError, ValueError, AttributeError, OverflowError):
            return svg(_named(figure, known), style=False), figure.title
    return "", ""


def _boxes(figure: Figure) -> int:
    shapes = figure.spec["drawing"].get("shapes")
    return len(shapes) if isinstance(shapes, list | tuple) else 0


def _named(figure: Figure, known: set[str]) -> Figure:
    """Boxes say in their tip which call they are; the second call of a name is ``name#2``, as for layers."""
    calls: Counter[str] = Counter()
    shapes = []
    for shape in figure.spec["drawing"]["shapes"]:
        name = (
            str(shape.get("tip", "")).split(";")[0] if "box" in shape and shape.get("is") != "frame" else ""
        )
        if name and "#" not in name:
            calls[name] += 1
            name = name if calls[name] == 1 else f"{name}#{calls[name]}"
        shapes.append({**shape, "of": name} if name in known else shape)
    return msgspec.structs.replace(figure, spec={"drawing": {**figure.spec["drawing"], "shapes": shapes}})


def likeness(exam: Examination, name: str) -> list[tuple[str, list[tuple[str, float]]]]:
    """Rows of matrices over layers (such as CKA) that belong to this layer: (title, [(other layer, value)])."""
    found = []
    for f in exam:
        for figure in f.figures.values():
            rows = figure_rows(figure.spec)
            if rows and set(rows[0]) == {"row", "column", "value"}:
                mine = [(str(r["column"]), r["value"]) for r in rows if str(r.get("row")) == name]
                mine = [(other, float(v)) for other, v in mine if isinstance(v, int | float)]
                if mine and any(other == name for other, _ in mine):
                    found.append((figure.title, mine))
    return found


def units(exam: Examination, name: str, read: Mapping[str, Mapping[str, np.ndarray]]) -> list[dict[str, Any]]:
    """Arrays with one number a unit of this layer, called "something/layer".

    Args:
        read: finding -> its arrays with their values.
    """
    found = []
    for f in exam:
        for key, array in read.get(f.instrument, {}).items():
            what, _, layer = key.partition("/")
            if layer == name and array.ndim == 1 and 1 < array.size <= 1 << 16 and array.dtype.kind in "fiu":
                values = array.astype(np.float64)
                values = np.where(np.isfinite(values), values, 0.0)
                found.append({"what": what, "finding": f.instrument, "values": values})
    return found


@dataclass(frozen=True)
class Exciting:
    """Which examples excite each unit of a layer most and least."""

    finding: str
    found: tuple[tuple[str, np.ndarray, np.ndarray], ...]
    """(most or least, ids [units, k], values [units, k]), best first."""

    @property
    def units(self) -> int:
        """How many units are spoken of."""
        return min(len(ids) for _, ids, _ in self.found)

    @property
    def silent(self) -> list[bool]:
        """[units] whether no example brings it above 0."""
        tops = [values.max(1) for word, _, values in self.found if word == "most"]
        return [bool(top <= 0) for top in tops[0][: self.units]] if tops else [False] * self.units

    @property
    def first(self) -> int:
        """The unit with the greatest value."""
        tops = [values.max(1) for word, _, values in self.found if word == "most"]
        return int(np.nan_to_num(tops[0][: self.units]).argmax()) if tops else 0

    def of(self, unit: int) -> list[tuple[str, list[tuple[int, float]]]]:
        """(most or least, [(example, value)]) of one unit."""
        return [
            (word, list(zip(ids[unit].tolist(), values[unit].tolist(), strict=True)))
            for word, ids, values in self.found
        ]


def exciting(exam: Examination, name: str, read: Mapping[str, Mapping[str, np.ndarray]]) -> Exciting | None:
    """Arrays "most exciting/layer" (ids) with "most excitement/layer" (values), and the same of "least"."""
    for f in exam:
        a = read.get(f.instrument, {})
        pairs = [
            (word, a.get(f"{word} exciting/{name}"), a.get(f"{word} excitement/{name}"))
            for word in ("most", "least")
        ]
        found = tuple((w, i, v) for w, i, v in pairs if i is not None and v is not None and _paired(i, v))
        if found:
            return Exciting(f.instrument, found)
    return None


def with_units(exam: Examination) -> list[str]:
    """Layers of whose units the most exciting examples are kept."""
    keys = (key for f in exam for key in f.arrays)
    return list(dict.fromkeys(k.partition("/")[2] for k in keys if k.startswith("most exciting/")))


def _paired(ids: np.ndarray, values: np.ndarray) -> bool:
    return ids.ndim == 2 and ids.shape == values.shape and ids.size > 0 and (ids.dtype.kind + values.dtype.kind) in (
        "if", "uf"
    )  # fmt: skip
