"""The representation in a notebook: one static table, in the notebook's own colours."""

from __future__ import annotations

from html import escape

from microtome.finding import Examination
from microtome.report.text import UNMEASURED, headline, tool_error, value_text, verdict

LIMIT = 90_000
_COLOURS = {"alarm": "#c0392b", "watch": "#b9770e", "good": "#1e8449"}


def notebook_html(exam: Examination) -> str:
    """Return a light static table of the headline numbers: no script, less than 100 KB."""
    worries = sum(f.grade in ("alarm", "watch") for f in exam)
    said = (
        f"{worries} of {len(exam)} findings deserve attention" if worries else "nothing graded deserves worry"
    )
    out = [
        '<div style="overflow-x:auto">',
        '<table style="border-collapse:collapse;font-variant-numeric:tabular-nums">',
        f'<caption style="text-align:left">{escape(_cut(headline(exam), 300))}; {said}</caption>',
        "<thead><tr>"
        + "".join(map(_head, ("instrument", "value [interval]", "tool error", "verdict", "")))
        + "</tr></thead><tbody>",
    ]
    size = sum(map(len, out))
    shown = 0
    measured = [(name, f) for name, f in exam.findings.items() if f.status == "measured"]
    for name, f in measured:
        colour = _COLOURS.get(f.grade or "", "inherit")
        grade = f'<span style="color:{colour};font-weight:600">{escape(verdict(f))}</span>'
        error = tool_error(exam.calibration.get(f.instrument, ()))
        cells = [escape(_cut(name, 80)), escape(_cut(value_text(f), 80)), escape(error), grade]
        cells.append(escape(_cut(f.summary, 160)))
        row = "<tr>" + "".join(f'<td style="text-align:left">{cell}</td>' for cell in cells) + "</tr>"
        if size + len(row) > LIMIT:
            break
        out.append(row)
        size += len(row)
        shown += 1
    out.append("</tbody></table>")
    left = len(measured) - shown
    counts = [(s, sum(f.status == s for f in exam)) for s in UNMEASURED]
    notes = [f"{left} more measured"] if left else []
    notes += [f"{count} {status}" for status, count in counts if count]
    if notes:
        out.append(
            f"<p>Not shown: {', '.join(notes)}. All of it: <code>exam.report('report.html')</code></p>"
        )
    return "".join(out) + "</div>"


def _head(name: str) -> str:
    return f'<th scope="col" style="text-align:left">{name}</th>'


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
