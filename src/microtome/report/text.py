"""The headline numbers as plain text, and the short phrases that every rendering shares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from microtome.finding import Examination, Finding, format_number

UNMEASURED = ("failed", "refused", "missing")


def table_text(exam: Examination) -> str:
    """Render an examination as columns: instrument, value with interval and unit, tool error, verdict.

    What was refused, failed or is missing follows, each with its reason.
    """
    lines = [headline(exam), ""]
    rows: list[tuple[str, str, str, str]] = []
    rooms: list[tuple[str, int]] = []
    for room, findings in exam.rooms().items():
        measured = [f for f in findings if f.status == "measured"]
        if measured:
            rooms.append((room, len(measured)))
            for f in measured:
                error = tool_error(exam.calibration.get(f.instrument, ()))
                rows.append((f"  {short_name(f)}", value_text(f), error, verdict(f)))
    head = ("", "value [interval]", "tool error", "verdict")
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(3)]

    def columns(row: Sequence[str]) -> str:
        return "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]).rstrip()

    if rows:
        lines.append(columns(head))
    remaining = iter(rows)
    for room, count in rooms:
        lines.append(room)
        lines += [columns(next(remaining)) for _ in range(count)]
    if not rows:
        lines.append("Nothing was measured.")
    for status in UNMEASURED:
        members = [(name, f) for name, f in exam.findings.items() if f.status == status]
        if members:
            width = max(len(name) for name, _ in members)
            lines += ["", f"{status} ({len(members)})"]
            lines += [f"  {name.ljust(width)}  {f.reason or 'no reason given'}" for name, f in members]
    return "\n".join(lines) + "\n"


def headline(exam: Examination) -> str:
    """Say in one line what was examined."""
    subject = exam.subject
    parts = [str(subject.get("name", "unnamed subject"))]
    if subject.get("task"):
        parts.append(str(subject["task"]))
    for key in ("parameters", "examples"):
        if isinstance(subject.get(key), int):
            parts.append(f"{subject[key]:,} {key}")
    parts += [f"seed {exam.seed}", f"examination {exam.id}"]
    if exam.status != "complete":
        parts.append(exam.status)
    return " | ".join(parts)


def short_name(finding: Finding) -> str:
    """Return the method without its room."""
    return finding.instrument.split("/", 1)[-1]


def value_text(finding: Finding) -> str:
    """Return the deciding number with its interval and unit, or a dash."""
    quantity = finding.quantities.get(finding.headline)
    return quantity.text() if quantity else "-"


def verdict(finding: Finding) -> str:
    """Return the grade where a threshold was stated; an alarm in capitals, as it is to be seen."""
    if finding.status != "measured":
        return finding.status
    return {None: "-", "good": "good", "watch": "watch", "alarm": "ALARM"}[finding.grade]


def tool_error(readings: Iterable[Mapping[str, Any]]) -> str:
    """Say how far the instrument was off on specimens of known answer, at most, or that it failed."""
    largest_share, largest = 0.0, 0.0
    count = 0
    for reading in readings:
        count += 1
        if reading.get("passed") is False:
            return "reads wrong"
        error, truth = number(reading.get("error")), number(reading.get("truth"))
        if error is None:
            continue
        if truth:
            largest_share = max(largest_share, abs(error / truth))
        else:
            largest = max(largest, abs(error))
    if not count:
        return "-"
    if largest_share >= largest:
        return f"{format_number(100 * largest_share)}%" if largest_share > 1e-6 else "0%"
    return format_number(largest) if largest > 1e-6 else "0"


def number(value: Any) -> float | None:
    """Return a number as it is, anything else as None."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def number_text(value: float) -> str:
    """Render a number; whole ones of five digits and more in groups of three."""
    text = format_number(value)
    return f"{int(text):,}" if text.lstrip("-").isdigit() and abs(value) >= 10_000 else text


def cell_text(value: Any) -> str:
    """Render one cell of a table."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return format_number(value)
    return str(value)


def anchor(instrument: str) -> str:
    """Return the id of a finding's section; stable, so that links into a report last."""
    return "f-" + "".join(c if c.isalnum() and c.isascii() else "--" if c == "/" else "-" for c in instrument)
