"""How far a run is."""

from __future__ import annotations

import time
from typing import Any

from microtome.progress import Progress
from microtome.report.html import seconds_text
from microtome.store import Line

SILENT_SECONDS = 90.0
"""A run that has written nothing for so long has probably been killed."""


def progress_of(line: Line, at: Progress | None) -> dict[str, Any]:
    """How far an examination is, for people and for the open page."""
    expected = at.instruments if at else 0
    share = 0.0
    if at and expected:
        part = min(at.done / at.rows, 1.0) if at.rows else 0.0
        # Instruments that wait for this round are partly done.
        share = min((line.findings + part * len(at.asking)) / expected, 1.0)
    text = (
        f"{line.findings} of {expected} instruments have answered"
        if expected
        else f"{line.findings} have answered"
    )
    if at and at.rows:
        text += f"; round {at.round}, {min(at.done / at.rows, 1.0):.0%} of its rows"
    silent = time.time() - at.at if at else None
    killed = line.status == "running" and silent is not None and silent > SILENT_SECONDS
    if killed and silent is not None:
        text += f"; no sign of it for {seconds_text(round(silent))}: it may have been killed"
    return {
        "id": line.id,
        "subject": line.subject,
        "status": line.status,
        "found": line.findings,
        "text": text,
        "share": round(share, 3),
        "percent": round(100 * share),
        "killed": killed,
        "known": bool(expected),
        "mark": f"{line.status}-{line.findings}",
    }
