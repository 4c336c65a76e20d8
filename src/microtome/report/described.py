"""What a chart shows, in a sentence: for those who do not see it, and where nobody wrote one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from microtome.finding import format_number

Row = Mapping[str, Any]
PLAIN = ("line", "bar", "point")


def described(spec: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Name what is drawn against what, and between which numbers; nothing for what is no plain chart."""
    try:
        return next(filter(None, (_said(mark, coded, rows) for mark, coded in _layers(spec))), "")
    except (AttributeError, KeyError, TypeError, ValueError):  # a stored specification may hold anything
        return ""


def _layers(spec: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for layer in spec.get("layer") or [spec]:
        mark = layer.get("mark")
        kind = mark.get("type") if isinstance(mark, Mapping) else mark
        if "data" not in layer or layer is spec:  # else a rule or a diagonal of its own
            yield str(kind), layer.get("encoding") or {}


def _said(mark: str, coded: Mapping[str, Any], rows: Sequence[Row]) -> str:
    across, up, colour = (coded.get(key) or {} for key in ("x", "y", "color"))
    if not (across.get("field") and up.get("field")):
        return ""
    if mark == "rect":
        ends = _ends(rows, colour.get("field"))
        if not (up.get("title") or across.get("title")):
            return f"{_name(colour)} of each row and column{ends}."
        return f"{_name(colour)}: rows are {_name(up, 'rows')}, columns {_name(across, 'columns')}{ends}."
    if mark not in PLAIN:
        return ""
    if further := (coded.get("x2") or {}).get("field"):
        return f"Number of {_name(up)} by {_name(across)}{_ends(rows, across.get('field'), further)}."
    # A bar lies along its number; of lines and points the number is the one that goes up.
    value, of = (across, up) if up.get("type") == "nominal" and mark == "bar" else (up, across)
    said = f"{_name(value)} against {_name(of)}" if mark != "bar" else f"{_name(value)} of each {_name(of)}"
    if colour.get("field"):
        said += f", colours by {_name(colour)}"
    return f"{said}{_ends(rows, value.get('field'))}."


def _name(channel: Mapping[str, Any], otherwise: str = "value") -> str:
    name = channel.get("title") or (channel.get("field") if otherwise == "value" else "") or otherwise
    return str(name)[:80]


def _ends(rows: Sequence[Row], *fields: Any) -> str:
    values = [row.get(str(field)) for row in rows for field in fields]
    known = [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]
    if not known:
        return ""
    low, high = min(known), max(known)
    return (
        f"; from {format_number(low)} to {format_number(high)}" if high > low else f"; {format_number(low)}"
    )
