"""Figures as data: small pure functions that return a Vega-Lite specification with its rows inline.

An instrument never draws. It hands plain rows to one of these functions and puts the
:class:`~microtome.finding.Figure` it gets into its finding; report, web page and notebook then draw the same
thing, and a test can read it. Rows are mappings from field name to number, text or None::

    figures.line("Loss", figures.rows(step=steps, loss=losses), x="step", y="loss", y_unit="nat")

Numbers must be finite (None leaves a gap); they may be Python, numpy or anything else with ``item()``. They
are kept to six significant digits, and more points than an eye can tell apart are thinned, which the caption
says.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from microtome.drawing import is_drawing, svg
from microtome.finding import Figure, format_number

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
MAX_POINTS = 2000
MAX_CELLS = 64
MAX_PIXELS = 128
GRID_PIXELS = 72

Row: TypeAlias = Mapping[str, Any]
Matrix: TypeAlias = Any
"""Anything ``numpy.asarray`` reads: a nested list, an array, a tensor on the CPU without gradient."""


def rows(**columns: Iterable[Any]) -> list[dict[str, Any]]:
    """Turn equally long columns into rows.

    Raises:
        ValueError: if the columns differ in length; the message gives the lengths.
    """
    lists = {name: list(values) for name, values in columns.items()}
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of one figure must be equally long, got {lengths}")
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def line(
    title: str,
    data: Iterable[Row],
    *,
    x: str,
    y: str,
    series: str | None = None,
    band: tuple[str, str] | None = None,
    x_title: str = "",
    y_title: str = "",
    x_unit: str = "",
    y_unit: str = "",
    log_x: bool = False,
    log_y: bool = False,
    rules: Mapping[str, float] | None = None,
    diagonal: bool = False,
    points: bool = True,
    caption: str = "",
) -> Figure:
    """Draw ``y`` against ``x``, one line per value of ``series``.

    ``band`` names the fields holding the lower and upper bound of ``y``; ``rules`` draws labelled horizontal
    references ("chance": 0.1); ``diagonal`` draws y = x (a reliability diagram's ideal).
    """
    values, note = _thinned(_clean(title, data, (x, y), series, band), series, x)
    across = _axis(x, x_title, x_unit, values, log_x)
    up = _axis(y, y_title, y_unit, values, log_y, extent=band)
    colour = _colour(series)
    layers: list[dict[str, Any]] = []
    if diagonal:
        layers.append(_diagonal(values, x, y, across, up))
    if band:
        low_high = {"y": up | {"field": _escape(band[0])}, "y2": {"field": _escape(band[1])}}
        layers.append(
            {"mark": {"type": "area", "opacity": 0.2}, "encoding": {"x": across, **low_high, **colour}}
        )
    mark = {"type": "line", "point": points and len(values) <= 200}
    tips = _tips([x, y, *(band or ()), *([series] if series else [])], values)
    layers.append({"mark": mark, "encoding": {"x": across, "y": up, **colour, **tips}})
    layers += _rules(rules, up, "y")
    return _figure(title, caption, note, values, {"layer": layers, **_box()})


def scatter(
    title: str,
    data: Iterable[Row],
    *,
    x: str,
    y: str,
    series: str | None = None,
    label: str | None = None,
    x_title: str = "",
    y_title: str = "",
    x_unit: str = "",
    y_unit: str = "",
    log_x: bool = False,
    log_y: bool = False,
    rules: Mapping[str, float] | None = None,
    diagonal: bool = False,
    caption: str = "",
) -> Figure:
    """Draw one point a row, coloured and shaped by ``series``; ``label`` is shown when pointed at."""
    values, note = _thinned(_clean(title, data, (x, y), series, None), series, None)
    across, up = _axis(x, x_title, x_unit, values, log_x), _axis(y, y_title, y_unit, values, log_y)
    shape = {"shape": {"field": _escape(series), "type": "nominal", "title": series}} if series else {}
    tips = _tips([f for f in (label, x, y, series) if f], values)
    mark = {"type": "point", "filled": True, "opacity": 0.6 if len(values) > 60 else 0.9, "size": 40}
    layers: list[dict[str, Any]] = [_diagonal(values, x, y, across, up)] if diagonal else []
    layers.append({"mark": mark, "encoding": {"x": across, "y": up, **_colour(series), **shape, **tips}})
    layers += _rules(rules, up, "y")
    return _figure(title, caption, note, values, {"layer": layers, **_box()})


def bars(
    title: str,
    data: Iterable[Row],
    *,
    category: str,
    value: str,
    series: str | None = None,
    band: tuple[str, str] | None = None,
    category_title: str = "",
    value_title: str = "",
    unit: str = "",
    horizontal: bool = True,
    log: bool = False,
    rules: Mapping[str, float] | None = None,
    caption: str = "",
) -> Figure:
    """Draw one bar a row, in the order given; several values of ``series`` stand side by side.

    ``band`` names the fields of each value's lower and upper bound. Horizontal bars leave room for names.
    """
    values = _clean(title, data, (category, value), series, band)
    length = _axis(value, value_title, unit, values, log, extent=band)
    length["stack"] = None
    base: dict[str, Any] = {}
    if length["scale"].get("type") == "log":  # a bar needs a foot, and a logarithm has no zero to stand on
        ends = [row[f] for row in values for f in (value, *(band or ())) if row[f] is not None]
        foot = 10.0 ** math.floor(math.log10(min(ends)) - 1e-9)
        length["scale"]["domainMin"] = foot
        base = {"datum": foot}
    else:
        length["scale"]["zero"] = True
    place: dict[str, Any] = {
        "field": _escape(category),
        "type": "nominal",
        "title": category_title or category,
        "sort": None,
        "axis": {"labelLimit": 220, "grid": False},
    }
    along, over, offset = ("x", "y", "yOffset") if horizontal else ("y", "x", "xOffset")
    shared: dict[str, Any] = {over: place}
    if series:
        shared[offset] = {"field": _escape(series), "type": "nominal", "sort": None}
    tips = _tips([category, value, *(band or ()), *([series] if series else [])], values)
    bar = {along: length, **({f"{along}2": base} if base else {})}
    layers = [{"mark": {"type": "bar"}, "encoding": {**bar, **shared, **_colour(series), **tips}}]
    if band:
        whisker = {along: length | {"field": _escape(band[0])}, f"{along}2": {"field": _escape(band[1])}}
        layers.append({"mark": {"type": "rule", "strokeWidth": 1.5}, "encoding": {**whisker, **shared}})
    layers += _rules(rules, length, along)
    size = {"width": "container", "height": {"step": 12 if series else 20}} if horizontal else _box()
    return _figure(title, caption, "", values, {"layer": layers, **size})


def histogram(
    title: str,
    counts: Sequence[Any] | np.ndarray | Mapping[str, Any],
    edges: Sequence[Any] | np.ndarray,
    *,
    x_title: str = "value",
    x_unit: str = "",
    y_title: str = "examples",
    log_y: bool = False,
    rules: Mapping[str, float] | None = None,
    caption: str = "",
) -> Figure:
    """Draw counts between edges (one more edge than counts); a mapping of counts overlays several groups.

    ``rules`` draws labelled vertical references.

    Raises:
        ValueError: if there is not one more edge than counts.
    """
    groups = dict(counts) if isinstance(counts, Mapping) else {"": counts}
    borders = [_number(edge) for edge in edges]
    data: list[dict[str, Any]] = []
    for name, group in groups.items():
        heights = [_number(count) for count in group]
        if len(borders) != len(heights) + 1:
            raise ValueError(
                f"figure '{title}': {len(heights)} counts need {len(heights) + 1} edges, got {len(borders)}"
            )
        for low, high, height in zip(borders[:-1], borders[1:], heights, strict=True):
            data.append({"from": low, "to": high, "count": height} | ({"group": name} if name else {}))
    series = "group" if "" not in groups else None
    values = _clean(title, data, ("from", "to", "count"), series, None)
    across = _axis("from", x_title, x_unit, values, False) | {"bin": {"binned": True}}
    up = _axis("count", y_title, "", values, log_y)
    up["stack"] = None
    tips = _tips(["from", "to", "count", *([series] if series else [])], values)
    mark = {"type": "bar", "opacity": 0.55 if series else 1, "binSpacing": 0.5}
    coded = {"x": across, "x2": {"field": "to"}, "y": up, **_colour(series), **tips}
    layers = [{"mark": mark, "encoding": coded}, *_rules(rules, across, "x")]
    return _figure(title, caption, "", values, {"layer": layers, **_box()})


def heatmap(
    title: str,
    matrix: Matrix,
    *,
    row_names: Sequence[Any] | None = None,
    column_names: Sequence[Any] | None = None,
    row_title: str = "",
    column_title: str = "",
    value_title: str = "value",
    unit: str = "",
    limits: tuple[float, float] | None = None,
    diverging: bool = False,
    caption: str = "",
) -> Figure:
    """Draw a matrix as coloured cells, first row on top; None or NaN leaves a cell empty.

    ``limits`` fixes the colour scale; ``diverging`` centres it on zero. A matrix of more than 64 rows or
    columns is drawn as means of equal blocks, which the caption says.

    Raises:
        ValueError: if the matrix is empty, not two-dimensional or not matched by its names.
    """
    table = np.array([[np.nan if v is None else float(v) for v in row] for row in matrix], dtype=np.float64)
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"figure '{title}': a heatmap needs a non-empty matrix, got shape {table.shape}")
    if np.isinf(table).any():
        raise ValueError(f"figure '{title}': an infinite cell cannot be drawn")
    names = []
    for given, size, axis in ((row_names, table.shape[0], "row"), (column_names, table.shape[1], "column")):
        if given is not None and len(given) != size:
            raise ValueError(f"figure '{title}': {size} {axis}s need {size} names, got {len(given)}")
        names.append([str(name) for name in given] if given is not None else [str(i) for i in range(size)])
    table, names, note = _blocks(table, names)
    finite = table[np.isfinite(table)]
    if finite.size == 0:
        raise ValueError(f"figure '{title}': every cell is empty")
    low, high = limits or (float(finite.min()), float(finite.max()))
    if diverging:
        low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
    if low == high:  # a constant matrix still needs a scale with two ends
        low, high = low - 0.5, high + 0.5
    data = [
        {"row": names[0][i], "column": names[1][j], "value": float(table[i, j])}
        for i in range(table.shape[0])
        for j in range(table.shape[1])
        if np.isfinite(table[i, j])
    ]
    values = _clean(title, data, ("row", "column", "value"), None, None)
    legend = _titled(value_title, unit)
    scheme = {"scheme": "redblue", "reverse": True} if diverging else {"scheme": "viridis"}
    place = {
        "x": _names("column", column_title, names[1], angle=-45 if max(map(len, names[1])) > 3 else 0),
        "y": _names("row", row_title, names[0], angle=0),
    }
    colour = {
        "field": "value",
        "type": "quantitative",
        "title": legend,
        "scale": scheme | {"domain": [low, high]},
    }
    tips = [
        {"field": "row", "title": row_title or "row"},
        {"field": "column", "title": column_title or "column"},
    ]
    tips.append({"field": "value", "title": legend})
    layers: list[dict[str, Any]] = [{"mark": "rect", "encoding": place | {"color": colour, "tooltip": tips}}]
    small = max(table.shape) <= 12
    if small:  # the numbers themselves, in whichever ink stands out on the cell's colour
        middle, far = (low + high) / 2, 0.6 * high
        bright = f"abs(datum.value) < {far!r}" if diverging else f"datum.value > {middle!r}"
        ink = {"condition": {"test": bright, "value": "#111"}, "value": "#fff"}
        text = {"field": "value", "type": "quantitative", "format": ".3~g"}
        layers.append(
            {"mark": {"type": "text", "fontSize": 10}, "encoding": place | {"text": text, "color": ink}}
        )
    width: Any = {"step": 40 if small else 24} if table.shape[1] <= 20 else "container"
    size = {"width": width, "height": {"step": 26 if small else 16 if table.shape[0] <= 32 else 9}}
    return _figure(title, caption, note, values, {"layer": layers, **size})


def image_grid(
    title: str,
    images: Sequence[Sequence[Any]],
    *,
    row_names: Sequence[Any] | None = None,
    column_names: Sequence[Any] | None = None,
    row_title: str = "",
    column_title: str = "",
    limits: tuple[float, float] | None = None,
    diverging: bool = False,
    caption: str = "",
) -> Figure:
    """Draw small images in rows and columns, such as attribution maps: examples down, methods across.

    Each image is [h, w], [h, w, 3], [1, h, w] or [3, h, w]; None leaves its place empty. Without ``limits``
    each is scaled to its own range, which the caption says. ``diverging`` maps negative to blue, zero to
    white and positive to red.

    Raises:
        ValueError: if there is no image, an image has another shape, or the names do not match.
    """
    grid = [list(row) for row in images]
    columns = max((len(row) for row in grid), default=0)
    down = [str(n) for n in row_names] if row_names is not None else [str(i + 1) for i in range(len(grid))]
    over = (
        [str(n) for n in column_names] if column_names is not None else [str(i + 1) for i in range(columns)]
    )
    if len(down) != len(grid) or len(over) != columns:
        raise ValueError(
            f"figure '{title}': {len(grid)} x {columns} images, but {len(down)} x {len(over)} names"
        )
    down, over = _all_distinct(down), _all_distinct(over)
    data = []
    for i, row in enumerate(grid):
        for j, image in enumerate(row):
            if image is not None:
                array = np.asarray(image)
                url, low, high = _image(title, array, limits, diverging)
                ends: dict[str, Any] = {"lowest": low, "highest": high}
                if diverging and (array.ndim == 2 or 1 in (array.shape[0], array.shape[2])):
                    ends["signed"] = True  # drawn from blue over white to red; a dark page may turn it
                data.append({"row": down[i], "column": over[j], "image": url, **ends})
    values = _clean(title, data, ("row", "column", "image"), None, None)
    place = {
        "x": _names("column", column_title, over, angle=0),
        "y": _names("row", row_title, down, angle=0),
    }
    bare = {"domain": False, "ticks": False}
    place["x"]["axis"] |= bare | {"orient": "top", "labelLimit": GRID_PIXELS}
    place["y"]["axis"] |= bare
    mark = {"type": "image", "width": GRID_PIXELS - 4, "height": GRID_PIXELS - 4, "aspect": True}
    tips = _tips(["row", "column", "lowest", "highest"], values)
    note = "" if limits else "Each image is scaled to its own range."
    size = {"width": {"step": GRID_PIXELS}, "height": {"step": GRID_PIXELS}}
    coded = place | {"url": {"field": "image", "type": "nominal"}} | tips
    return _figure(title, caption, note, values, {"mark": mark, "encoding": coded, **size})


def problems(figure: Figure) -> list[str]:
    """Say what is wrong with a figure: no rows, a number that is not finite, a field no row has.

    An empty list means that it can be drawn. Any Vega-Lite specification with inline data can be checked, not
    only those made here.
    """
    if is_drawing(figure):
        try:
            return [] if svg(figure) else ["it draws nothing"]
        except (KeyError, TypeError, ValueError) as error:
            return [str(error)]
    return list(_problems(figure.spec, None, set()))


def figure_rows(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the main rows of a specification: its own data, or the largest among its layers."""
    found: list[list[dict[str, Any]]] = []
    stack: list[Any] = [spec]
    while stack:
        part = stack.pop()
        if isinstance(part, Mapping):
            own = part.get("data")
            if isinstance(own, Mapping) and isinstance(own.get("values"), list):
                found.append([row if isinstance(row, dict) else {"value": row} for row in own["values"]])
            stack += [v for k, v in part.items() if k != "data"]
        elif isinstance(part, list):
            stack += part
    if isinstance(spec.get("data"), Mapping) and found:
        return found[0]
    return max(found, key=len, default=[])


# --- encodings -------------------------------------------------------------------------------------------


def _escape(field: str | None) -> str:
    """Vega-Lite reads ``a.b`` and ``a[0]`` as paths into a row; layer names are full of both."""
    return "".join("\\" + c if c in ".[]" else c for c in field or "")


def _titled(title: str, unit: str) -> str:
    return f"{title} ({unit})" if unit and unit != "1" else title


def _axis(
    field: str,
    title: str,
    unit: str,
    values: list[dict[str, Any]],
    log: bool,
    extent: tuple[str, str] | None = None,
) -> dict[str, Any]:
    numbers = [row[f] for row in values for f in (field, *(extent or ())) if row.get(f) is not None]
    kind = "nominal" if any(isinstance(v, str) for v in numbers) else "quantitative"
    axis: dict[str, Any] = {"field": _escape(field), "type": kind, "title": _titled(title or field, unit)}
    if kind == "nominal":
        return axis | {"sort": None, "axis": {"labelLimit": 160}}
    axis["scale"] = {"zero": False}
    if log and min(numbers, default=1) > 0:
        axis["scale"] = {"type": "log"}
    elif log:  # zero and below have no logarithm; a symmetric log keeps them on the page
        small = min((abs(v) for v in numbers if v), default=1.0)
        axis["scale"] = {"type": "symlog", "constant": small}
        axis["title"] += " [symmetric log]"
    return axis


def _names(field: str, title: str, names: list[str], *, angle: float) -> dict[str, Any]:
    axis = {"labelAngle": angle, "labelLimit": 140, "grid": False, "labelOverlap": len(names) > 40}
    return {"field": field, "type": "nominal", "title": title or None, "sort": names, "axis": axis}


def _colour(series: str | None) -> dict[str, Any]:
    if not series:
        return {}
    return {"color": {"field": _escape(series), "type": "nominal", "title": series, "sort": None}}


def _tips(fields: Sequence[str], values: list[dict[str, Any]]) -> dict[str, Any]:
    known = [f for f in fields if any(f in row for row in values)]
    return {"tooltip": [{"field": _escape(field), "title": field} for field in known]}


def _rules(rules: Mapping[str, float] | None, axis: dict[str, Any], channel: str) -> list[dict[str, Any]]:
    """Dashed reference lines, each with its name at its end."""
    if not rules:
        return []
    data = {"values": [{"at": _number(at), "name": name} for name, at in rules.items()]}
    where = {channel: {"field": "at", "type": "quantitative", "title": axis["title"]}}
    if "scale" in axis:
        where[channel]["scale"] = axis["scale"]
    line_mark = {"type": "rule", "strokeDash": [4, 4], "opacity": 0.8}
    # The name sits inside the plot, at the right end of a horizontal line or the top of a vertical one.
    text = {"type": "text", "fontSize": 10, "opacity": 0.9}
    if channel == "y":
        text |= {"align": "right", "dy": -5, "x": "width"}
    else:
        text |= {"align": "left", "dx": 4, "baseline": "top", "y": 0}
    tip = {"tooltip": [{"field": "name"}, {"field": "at"}]}
    return [
        {"data": data, "mark": line_mark, "encoding": {**where, **tip}},
        {"data": data, "mark": text, "encoding": {**where, "text": {"field": "name", "type": "nominal"}}},
    ]


def _diagonal(
    values: list[dict[str, Any]], x: str, y: str, across: dict[str, Any], up: dict[str, Any]
) -> dict[str, Any]:
    both = [row[f] for row in values for f in (x, y) if row[f] is not None]
    ends = [{x: v, y: v} for v in (min(both), max(both))]
    mark = {"type": "line", "strokeDash": [4, 4], "opacity": 0.6, "color": "#888"}
    return {"data": {"values": ends}, "mark": mark, "encoding": {"x": across, "y": up}}


def _box() -> dict[str, Any]:
    return {"width": "container", "height": 240}


def _figure(
    title: str, caption: str, note: str, values: list[dict[str, Any]], body: dict[str, Any]
) -> Figure:
    said = " ".join(part for part in (caption, note) if part)
    description = f"{title}. {said}".strip()
    spec = {"$schema": SCHEMA, "description": description, "data": {"values": values}, **body}
    return Figure(title=title, spec=spec, caption=said)


# --- data ------------------------------------------------------------------------------------------------


def _number(value: Any) -> float | int:
    plain = value.item() if hasattr(value, "item") else value
    if isinstance(plain, bool | int):
        return int(plain)
    return float(f"{float(plain):.6g}")


def _plain(title: str, field: str, value: Any) -> Any:
    kind = type(value)
    if kind is str or kind is int or value is None:
        return value
    if kind is float and math.isfinite(value):
        return float(f"{value:.6g}")
    plain = value.item() if hasattr(value, "item") else value
    if plain is None or isinstance(plain, str | bool | int):
        return plain
    if not isinstance(plain, float):
        raise ValueError(
            f"figure '{title}': field '{field}' holds a {type(value).__name__}; numbers and text only"
        )
    if not math.isfinite(plain):
        raise ValueError(f"figure '{title}': field '{field}' is {plain}; use None for a gap")
    return _number(plain)


def _clean(
    title: str,
    data: Iterable[Row],
    needed: Sequence[str],
    series: str | None,
    band: tuple[str, str] | None,
) -> list[dict[str, Any]]:
    values = [{str(k): _plain(title, str(k), v) for k, v in row.items()} for row in data]
    if not values:
        raise ValueError(f"figure '{title}' has no rows")
    for field in (*needed, *([series] if series else []), *(band or ())):
        if any(field not in row for row in values):
            known = ", ".join(values[0])
            raise ValueError(f"figure '{title}': a row has no field '{field}'; the first has {known}")
    return values


def _thinned(
    values: list[dict[str, Any]], series: str | None, order: str | None
) -> tuple[list[dict[str, Any]], str]:
    """Keep at most MAX_POINTS rows, evenly spaced within each series, first and last included."""
    if len(values) <= MAX_POINTS:
        return values, ""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in values:
        groups.setdefault(row[series] if series else None, []).append(row)
    if order is not None:
        for group in groups.values():
            if all(isinstance(row[order], int | float) for row in group):
                group.sort(key=lambda row: row[order])
    each = max(2, MAX_POINTS // len(groups))
    kept: list[dict[str, Any]] = []
    for group in groups.values():
        chosen = np.unique(np.linspace(0, len(group) - 1, min(each, len(group))).round().astype(int))
        kept += [group[i] for i in chosen]
    return kept, f"{len(kept)} of {len(values)} points are drawn, evenly spaced."


def _blocks(table: np.ndarray, names: list[list[str]]) -> tuple[np.ndarray, list[list[str]], str]:
    """Average a large matrix over equal blocks until it fits; empty cells do not count."""
    if max(table.shape) <= MAX_CELLS:
        return table, [_all_distinct(n) for n in names], ""
    shape = table.shape
    for axis in (0, 1):
        cuts = np.array_split(np.arange(table.shape[axis]), min(MAX_CELLS, table.shape[axis]))
        parts = []
        for cut in cuts:
            part = np.take(table, cut, axis=axis)
            known = np.isfinite(part).sum(axis=axis)
            total = np.where(np.isfinite(part), part, 0.0).sum(axis=axis)
            parts.append(np.where(known > 0, total / np.maximum(known, 1), np.nan))
        table = np.stack(parts, axis=axis)
        kept = names[axis]
        names[axis] = [kept[c[0]] if len(c) == 1 else f"{kept[c[0]]}..{kept[c[-1]]}" for c in cuts]
    note = f"{shape[0]} x {shape[1]} cells are drawn as {table.shape[0]} x {table.shape[1]} block means."
    return table, [_all_distinct(n) for n in names], note


def _all_distinct(names: list[str]) -> list[str]:
    return [_distinct(names, i) for i in range(len(names))]


def _distinct(names: list[str], index: int) -> str:
    """Two rows of one name would be drawn on top of each other."""
    name = names[index]
    return name if names.count(name) == 1 else f"{name} #{names[: index + 1].count(name)}"


# --- images ----------------------------------------------------------------------------------------------


def png(pixels: np.ndarray, level: int = 9) -> bytes:
    """Encode uint8 pixels, [h, w] grey or [h, w, 3] colour, as a PNG file.

    Args:
        level: of compression; 1 is several times faster than 9, for what is shown once.

    Raises:
        ValueError: if the array has another type or shape.
    """
    if pixels.dtype != np.uint8 or pixels.size == 0 or not (pixels.ndim == 2 or pixels.shape[2:] == (3,)):
        raise ValueError(f"a PNG needs uint8 [h, w] or [h, w, 3], got {pixels.dtype} {pixels.shape}")
    height, width = pixels.shape[:2]
    flat = np.ascontiguousarray(pixels).reshape(height, -1)
    # Filter 2 (difference from the row above) turns enlarged pixels into runs of zeros.
    above = np.vstack([np.zeros_like(flat[:1]), flat[:-1]])
    scan = np.hstack([np.full((height, 1), 2, np.uint8), flat - above])

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0 if pixels.ndim == 2 else 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(scan.tobytes(), level)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _image(
    title: str, image: np.ndarray, limits: tuple[float, float] | None, diverging: bool
) -> tuple[str, float, float]:
    """One image as a data URL, with the values its colour scale begins and ends at."""
    array = image.astype(np.float64)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
        array = np.moveaxis(array, 0, 2)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(f"figure '{title}': an image is [h, w] or [h, w, 3], got shape {image.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"figure '{title}': an image holds values that are not finite")
    array = _shrunk(array)
    low, high = limits or (float(array.min()), float(array.max()))
    if diverging:
        low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
    share = np.clip((array - low) / (high - low), 0, 1) if high > low else np.full_like(array, 0.5)
    if diverging and array.ndim == 2:
        share = red_blue(share)
    pixels = (share * 255).round().astype(np.uint8)
    grow = max(1, math.ceil(GRID_PIXELS / max(pixels.shape[:2])))  # small images stay sharp when drawn large
    pixels = pixels.repeat(grow, axis=0).repeat(grow, axis=1)
    url = "data:image/png;base64," + base64.b64encode(png(pixels, level=3)).decode("ascii")
    return url, float(format_number(low)), float(format_number(high))


def _shrunk(array: np.ndarray) -> np.ndarray:
    factor = math.ceil(max(array.shape[:2]) / MAX_PIXELS)
    if factor == 1:
        return array
    for axis in (0, 1):
        starts = np.arange(0, array.shape[axis], factor)
        sizes = np.diff(np.append(starts, array.shape[axis]))
        total = np.add.reduceat(array, starts, axis=axis)
        array = total / sizes.reshape([-1 if i == axis else 1 for i in range(array.ndim)])
    return array


def red_blue(share: np.ndarray) -> np.ndarray:
    """Blue at 0, white in the middle, red at 1; [h, w] -> [h, w, 3]."""
    stops = np.array(
        [[0.02, 0.19, 0.38], [0.26, 0.58, 0.76], [1, 1, 1], [0.84, 0.38, 0.30], [0.40, 0.0, 0.12]]
    )
    at = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(share, at, stops[:, c]) for c in range(3)], axis=2)


# --- checking --------------------------------------------------------------------------------------------


def _problems(part: Mapping[str, Any], inherited: list[Any] | None, made: set[str]) -> Iterator[str]:
    own = part.get("data")
    values = inherited
    if isinstance(own, Mapping):
        if "values" not in own:
            yield f"data is not inline: {sorted(own)}"
        values = own.get("values") or []
        if not values:
            yield "data has no rows"
        for row in values:
            for field, value in row.items() if isinstance(row, Mapping) else [("value", row)]:
                if isinstance(value, float) and not math.isfinite(value):
                    yield f"field '{field}' holds {value}"
    made = made | set(_made_by_transforms(part.get("transform", [])))
    fields = {field for row in values or [] if isinstance(row, Mapping) for field in row} | made
    for channel, code in part.get("encoding", {}).items():
        for each in code if isinstance(code, list) else [code]:
            field = each.get("field") if isinstance(each, Mapping) else None
            if isinstance(field, str) and field.replace("\\", "") not in fields:
                yield f"channel '{channel}' names field '{field}', which no row has"
    children = [c for key in ("layer", "hconcat", "vconcat", "concat") for c in part.get(key, [])]
    if isinstance(part.get("spec"), Mapping):
        children.append(part["spec"])
    if not children and "mark" not in part:
        yield "nothing is drawn: no mark and no layer"
    if not children and values is None:
        yield "no data"
    for child in children:
        yield from _problems(child, values, made)


def _made_by_transforms(transforms: Iterable[Any]) -> Iterator[str]:
    for transform in transforms:
        stack = [transform]
        while stack:
            node = stack.pop()
            if isinstance(node, Mapping):
                name = node.get("as")
                yield from [name] if isinstance(name, str) else name if isinstance(name, list) else []
                stack += node.values()
            elif isinstance(node, list):
                stack += node
