"""Findings as lines of a list: cheap, for none of their figures is looked at."""

from __future__ import annotations

from typing import Any

from microtome.finding import Examination
from microtome.report import text as words
from microtome.report.html import named
from microtome.report.text import anchor

LARGEST_FIGURE = 4_000_000
"""Characters of a figure's specification beyond which the browser is spared it."""


def rooms(exam: Examination) -> list[tuple[str, list[dict[str, Any]]]]:
    """Room -> its measured findings, in the order they were planned."""
    found = []
    for room, members in named(exam).rooms().items():
        lines = [
            {
                "f": f,
                "id": anchor(f.instrument),
                "name": f.instrument,
                "method": words.short_name(f),
                "deciding": f.quantities.get(f.headline),
                "tool_error": words.tool_error(exam.calibration.get(f.instrument, ())),
            }
            for f in members
            if f.status == "measured"
        ]
        if lines:
            found.append((room, lines))
    return found
