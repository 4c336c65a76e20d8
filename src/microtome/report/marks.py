"""Small marks inside text: bars, lines and intervals as SVG with a sentence for those who do not see them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from markupsafe import Markup

from microtome.finding import format_number

MOST_BARS = 192


def bars(values: Sequence[float] | np.ndarray, said: str, names: Sequence[str] = ()) -> Markup:
    """One bar a value from 0 on; more than 192 are joined by their mean; values of 0 are marked below."""
    array = np.asarray(values, dtype=np.float64)
    if array.size > MOST_BARS:
        array = np.array([part.mean() for part in np.array_split(array, MOST_BARS)])
    top, bottom = max(float(array.max(initial=0.0)), 0.0), min(float(array.min(initial=0.0)), 0.0)
    span, width = (top - bottom) or 1.0, 480 / max(array.size, 1)
    zero = 46 * top / span + 2
    parts = []
    for i, value in enumerate(array):
        high = abs(46 * value / span)
        y = zero - high if value >= 0 else zero
        kind = "zero" if value == 0 else "bar"
        shape = f'y="{zero:.1f}" height="3"' if value == 0 else f'y="{y:.1f}" height="{max(high, 0.5):.1f}"'
        name = escape(names[i]) if i < len(names) else f"unit {i}" if array.size == len(values) else ""
        tip = f"<title>{name}: {format_number(float(value))}</title>"
        parts.append(
            f'<rect class="{kind}" x="{i * width:.1f}" width="{max(width - 1, 0.7):.1f}" {shape}>{tip}</rect>'
        )
    return _svg(480, 54, said, "".join(parts), "bars")


def course(values: Sequence[float | None], said: str, ringed: Sequence[int] = ()) -> Markup:
    """A line through the values, each a point that can be lit; gaps where there is none; some points in a ring."""
    known = [v for v in values if v is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    span = (high - low) or 1.0
    step = 152 / max(len(values) - 1, 1)
    points = [
        (i, 4 + i * step, 24 - 20 * (v - low) / span if high > low else 14.0)
        for i, v in enumerate(values)
        if v is not None
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for _, x, y in points)
    rings = "".join(
        f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>' for i, x, y in points if i in ringed
    )
    dots = rings + "".join(f'<circle data-at="{i}" cx="{x:.1f}" cy="{y:.1f}" r="2"/>' for i, x, y in points)
    return _svg(160, 28, said, f'<polyline points="{line}"/>{dots}', "course")


def interval(value: float, low: float | None, high: float | None, reach: float, said: str) -> Markup:
    """A difference with its interval around the line of no difference, on a scale up to ``reach`` either way."""

    def at(x: float) -> float:
        return 55 + 50 * max(-1.0, min(1.0, x / reach if reach else 0.0))

    parts = '<line class="none" x1="55" x2="55" y1="1" y2="17"/>'
    if low is not None and high is not None:
        parts += f'<line class="span" x1="{at(low):.1f}" x2="{at(high):.1f}" y1="9" y2="9"/>'
    parts += f'<circle cx="{at(value):.1f}" cy="9" r="3.5"/>'
    return _svg(110, 18, said, parts, "interval")


def _svg(width: int, height: int, said: str, inside: str, kind: str) -> Markup:
    # ``inside`` is made of numbers and escaped names alone.
    return Markup(
        f'<svg class="mark {kind}" role="img" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'aria-label="{escape(said, quote=True)}">{inside}</svg>'
    )
