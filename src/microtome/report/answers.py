"""Short answers to what people ask first, read off whatever findings hold them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from microtome.finding import Examination, Finding, Table, format_number
from microtome.report.layers import wasteful


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


def answers(exam: Examination) -> list[dict[str, Any]]:
    """Question, answer in a sentence, grade, the finding it comes from, and the screen of the lab that shows more."""
    found = [
        {"question": "Which class is taken for which?"} | _confused(exam),
        {"question": "How far off are its values?"} | _told(finding_with(exam, "root mean squared error")),
        {"question": "Can its probabilities be trusted?"} | _told(finding_with(exam, "ECE")),
        {"question": "Why is an example wrong?"} | _wrong(exam),
        {"question": "Which layer is wasteful?"} | _waste(exam),
        {"question": "Who can break it?"} | _told(finding_with(exam, "adversarial accuracy")),
    ]
    return [_EMPTY | each for each in found if each.get("said")]


_EMPTY: dict[str, Any] = {"grade": None, "finding": "", "screen": "", "links": []}


def _told(f: Finding | None) -> dict[str, Any]:
    if f is None or f.status != "measured":
        return {}
    return {"said": f.summary, "grade": f.grade, "finding": f.instrument}


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
        return {"said": said, "finding": f.instrument}
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
            return {"said": said, "finding": f.instrument, "screen": "examples?wrong=1", "links": links}
    return {}


def _waste(exam: Examination) -> dict[str, Any]:
    found = wasteful(exam)
    names = [f.instrument for f, _ in tables_with(exam, "weights", "count", "prunable")]
    return {"said": found[0]["said"], "finding": names[0], "screen": "layers"} if found and names else {}
