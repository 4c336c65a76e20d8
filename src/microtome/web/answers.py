"""Short answers to what people ask first, read off whatever findings hold them; and how far a run is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlencode

from microtome.finding import Examination, Finding, Table, format_number
from microtome.progress import Progress
from microtome.report.html import anchor, seconds_text
from microtome.store import Line
from microtome.web.layers import wasteful

SILENT_SECONDS = 90.0
"""A run that has written nothing for so long has probably been killed."""


def tables_with(exam: Examination, *columns: str) -> Iterator[tuple[Finding, Table]]:
    """Every table that has all these columns, with its finding."""
    for f in exam:
        for table in f.tables.values():
            if set(columns) <= set(table.columns):
                yield f, table


def finding_with(exam: Examination, *quantities: str) -> Finding | None:
    """The first finding that measured one of these quantities."""
    for name in quantities:
        for f in exam:
            if name in f.quantities:
                return f
    return None


def answers(exam: Examination, others: Sequence[Line] = ()) -> list[dict[str, Any]]:
    """Question, answer in a sentence, grade, where it comes from, and further places to go.

    Args:
        others: examinations that this one may be set beside.
    """
    found = [
        {"question": "Which class is taken for which?"} | _confused(exam),
        {"question": "Can its probabilities be trusted?"} | _said(finding_with(exam, "ECE")),
        {"question": "Why is an example wrong?"} | _wrong(exam),
        {"question": "Which layer is wasteful?"} | _waste(exam),
        {"question": "Who can break it?"} | _said(finding_with(exam, "adversarial accuracy")),
    ]
    shown = [each for each in found if each.get("said")]
    beside = {"grade": None, "to": f"/compare?of={exam.id}"}
    if any("trajectory" in f.tables for f in exam):
        said = "Its checkpoints: every deciding number along training, to scrub through."
        shown.append({"question": "How did it come to this?", "said": said} | beside)
    elif shown:
        said = (
            "Set it beside another: before and after pruning, two seeds. What is more than noise comes first."
        )
        links = [
            (
                other.subject or other.id,
                f"/compare?{urlencode({'by': 'time', 'of': (exam.id, other.id)}, True)}",
            )
            for other in others
        ]
        shown.append({"question": "What changed?", "said": said, "links": links} | beside)
    return shown


def _said(f: Finding | None) -> dict[str, Any]:
    if f is None or f.status != "measured":
        return {}
    return {"said": f.summary, "grade": f.grade, "to": f"#{anchor(f.instrument)}"}


def _confused(exam: Examination) -> dict[str, Any]:
    for f, table in tables_with(exam, "true", "predicted", "count"):
        at = [table.columns.index(name) for name in ("true", "predicted", "count")]
        rows: list[list[Any]] = [[row[i] for i in at] for row in table.rows]
        rows.sort(key=lambda row: -row[2] if isinstance(row[2], int | float) else 0)
        total = _mistakes(f, rows)
        parts = [f"{t} taken for {p} ({format_number(n)}×)" for t, p, n in rows[:4]]
        said = f"{format_number(total)} mistakes: {', '.join(parts)}" if rows else "No mistake was made."
        left = total - sum(n for _, _, n in rows[:4] if isinstance(n, int | float))
        if rows and left > 0:
            said += f", and {format_number(left)} others"
        # No grade: that of the finding speaks of all mistakes together.
        return {"said": said, "grade": None, "to": f"#{anchor(f.instrument)}"}
    return {}


def _mistakes(f: Finding, rows: Sequence[Sequence[Any]]) -> float:
    """How many there are: the table may hold the commonest alone."""
    listed = float(sum(row[2] for row in rows if isinstance(row[2], int | float)))
    share, of = f.quantities.get("accuracy"), f.coverage
    return max(listed, float(round((1 - share.value) * of.rows))) if share and of else listed


def _wrong(exam: Examination) -> dict[str, Any]:
    for f, table in tables_with(exam, "example", "label", "answer"):
        at = [table.columns.index(name) for name in ("example", "label", "answer")]
        rows = ([row[i] for i in at] for row in table.rows)
        worst = [(e, y, a) for e, y, a in rows if y != a and isinstance(e, int)]
        if {"labels", "answers"} <= f.arrays.keys() and worst:
            said = "The surest of the wrong; open one: what it resembles, and what speaks for the answer."
            links = [(f"{e} ({y} taken for {a})", f"examples/{e}?wrong=1") for e, y, a in worst[:3]]
            return {"said": said, "grade": None, "to": "examples?wrong=1", "links": links}
    return {}


def _waste(exam: Examination) -> dict[str, Any]:
    found = wasteful(exam)
    return {"said": found[0]["said"], "grade": None, "to": "layers"} if found else {}


def progress(line: Line, at: Progress | None) -> dict[str, Any]:
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
