"""The report: one HTML file, readable from what to worry about down to the last table.

The examination itself is embedded as JSON, and the figures are drawn from it: one copy of the data.
All text goes through the template's escaping; a content-security policy names the file's own scripts by their
hashes and allows nothing else, so that a name or a caption can neither run nor reach the network.
"""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import msgspec
import numpy as np

from microtome.drawing import is_drawing, svg
from microtome.errors import UsageError
from microtome.figures import figure_rows
from microtome.finding import Examination, Figure, Finding, Table, encode_json, format_number
from microtome.report import single
from microtome.report import text as words
from microtome.report.answers import answers
from microtome.report.described import described
from microtome.report.text import anchor

SIZE_CAP = 5_000_000
MISTAKES = 8
"""Wrong examples that are shown."""
MISTAKES_SIZE = 600_000
"""Characters that they may have together."""
FIGURE_ROWS = 100
"""Rows of a figure's data that are also written as a table; all are in the embedded JSON."""
TABLE_ROWS = 300
ROOMS = {
    "reliability": "When will it fail?",
    "represent": "What has it learned, and where?",
    "dynamics": "How did it get so, and how does it sit in its loss?",
    "explain": "Why does it answer so?",
    "security": "Who can break it?",
    "compress": "How small can it get?",
    "architect": "What is it made of?",
    "theory": "What does theory say of it?",
    "graphs": "How does it use its graph?",
}
_LIBRARIES = ("vega", "vega-lite", "vega-embed")


class ReportSizeWarning(UserWarning):
    """A report came out larger than it should be."""


def write_report(exam: Examination, path: str | Path) -> Path:
    """Write the report of an examination as one HTML file.

    Raises:
        UsageError: MT150, when the file cannot be written.
    """
    target = Path(path).expanduser()
    if target.is_dir():
        target = target / f"{exam.id}.html"
    page = report_html(exam).encode("utf-8", errors="replace")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target and renamed, so that a reader or a full disk never meets half a report.
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:40]}.", suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(page)
            os.chmod(name, 0o644)
            os.replace(name, target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        fix = "give another path with --report"
        raise UsageError(
            "MT150", f"the report cannot be written: {reason}", where=str(target), fix=fix
        ) from error
    return target


def report_html(exam: Examination) -> str:
    """Return the report as one HTML document of at most 5 MB, unless text alone is more."""
    mistakes = list(mistakes_of(exam))
    exam, note = _fitted(exam, len(repr(mistakes)))
    page = _page(exam, note, mistakes)
    if len(page) > SIZE_CAP:
        megabytes = len(page) / 1e6
        warnings.warn(
            f"the report has {megabytes:.1f} MB, more than it should", ReportSizeWarning, stacklevel=3
        )
    return page


def _page(exam: Examination, note: str, mistakes: Sequence[Mapping[str, Any]]) -> str:
    draws = any(f.figures for f in exam)
    scripts = [library(), own("draw.js")] if draws else []
    drawn = dict(parts_of(exam))
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            exam=exam,
            title=f"{exam.subject.get('name', 'unnamed subject')}: examination {exam.id}",
            style=own("report.css"),
            scripts=scripts,
            script_hashes=[script_hash(script) for script in scripts],
            data=script_json(encode_json(exam)),
            size_note=note,
            facts=list(facts_of(exam)),
            about=[
                part for part in words.headline(exam).split(" | ")[1:] if not part.startswith("examination ")
            ],
            inferred=[str(line) for line in exam.subject.get("inferred") or ()],
            answers=answers(named(exam)),
            mistakes=mistakes,
            worries=list(worries_of(exam)),
            grades={grade: sum(f.grade == grade for f in exam) for grade in ("good", "watch", "alarm", None)},
            statuses={s: sum(f.status == s for f in exam) for s in ("measured", *words.UNMEASURED)},
            rooms=[
                (room, ROOMS.get(room, ""), [drawn[f.instrument] for f in findings if f.status == "measured"])
                for room, findings in named(exam).rooms().items()
                if any(f.status == "measured" for f in findings)
            ],
            unmeasured={
                status: [f for f in named(exam) if f.status == status]
                for status in words.UNMEASURED
                if any(f.status == status for f in exam)
            },
            words=words,
        )
    )


# --- what the template shows -------------------------------------------------------------------------


def named(exam: Examination) -> Examination:
    """The same examination; a finding built by hand may not repeat its own name, here it does."""
    findings = {
        name: f if f.instrument == name else msgspec.structs.replace(f, instrument=name)
        for name, f in exam.findings.items()
    }
    return msgspec.structs.replace(exam, findings=findings)


def facts_of(exam: Examination) -> Iterator[tuple[str, Any]]:
    """What was examined, when and on what, by name."""
    for key, value in exam.subject.items():
        if key in ("name", "inferred") or value in (None, "", [], {}):
            continue
        parts = value.items() if isinstance(value, Mapping) else [("", value)]
        for part, each in parts:
            yield f"{key} {part}".strip().replace("_", " "), f"{each:,}" if isinstance(each, int) else each
    yield "examined", exam.created.replace("T", " ").replace("Z", " UTC").replace("+00:00", " UTC")
    yield "seed", exam.seed
    yield "took", seconds_text(exam.seconds)
    covered = [f.coverage for f in exam if f.coverage]
    if covered:
        most = max(covered, key=lambda c: c.rows)
        yield "data covered", f"up to {most.rows:,} of {most.rows_total:,} examples"
    if exam.versions:
        yield "versions", ", ".join(f"{name} {version}" for name, version in exam.versions.items())


def worries_of(exam: Examination) -> Iterator[dict[str, str]]:
    """What deserves attention, the worst first, and instruments that read a known answer wrong."""
    for finding in named(exam).worries():
        kind = finding.grade if finding.status == "measured" and finding.grade else "failed"
        said = finding.summary if kind != "failed" else finding.reason
        rule = finding.threshold.text() if finding.threshold and kind != "failed" else ""
        yield {"kind": kind, "id": anchor(finding.instrument), "name": finding.instrument, "said": said} | {
            "value": words.value_text(finding) if kind != "failed" else "",
            "rule": rule,
        }
    for name, readings in exam.calibration.items():
        wrong = [str(r.get("specimen", "a specimen")) for r in readings if r.get("passed") is False]
        if wrong:
            said = f"This instrument read {', '.join(wrong)} wrong, so do not trust its finding."
            yield {"kind": "tool", "id": anchor(name), "name": name, "said": said, "value": "", "rule": ""}


def mistakes_of(exam: Examination) -> Iterator[dict[str, Any]]:
    """The wrong answers of greatest loss, each with what it resembles and what speaks for it.

    Nothing where the values of the arrays are not at hand, as in an examination that was read without them.
    """
    exam = named(exam)
    read = {
        f.instrument: f.arrays for f in exam if "rows" in f.arrays and all(map(_at_hand, f.arrays.values()))
    }
    found = single.records(exam, read)
    if found.wrong is None:
        return
    written = 0
    for at in single.order(found, "loss", True, "", "", True)[:MISTAKES].tolist():
        tokens = single.tokens(found, at)
        row = int(found.rows[at])
        made = {
            "cell": single.cells(found, [at], "")[0],
            "text": single.prose(tokens),
            "reasons": single.reasons(found, at, exam),
            "near": single.neighbours(found, at),
            "maps": single.maps(exam, read, row, tokens),
        }
        written += len(repr(made))
        if written > MISTAKES_SIZE:
            return
        yield made


def _at_hand(array: np.ndarray) -> bool:
    """Whether an array has its values; one that was not loaded is a single zero seen from everywhere."""
    return array.size < 2 or any(array.strides)


def parts_of(exam: Examination) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the template shows of each finding that was measured, by name."""
    for name, f in named(exam).findings.items():
        if f.status == "measured":
            yield name, part_of(name, f, exam.calibration.get(name, []))


def part_of(
    name: str, f: Finding, readings: Sequence[Mapping[str, Any]], *, inline: bool = False
) -> dict[str, Any]:
    """What the template shows of one finding.

    Args:
        readings: of its instrument on specimens.
        inline: whether each chart carries its own specification, for a page without the embedded examination.
    """
    return {
        "f": f,
        "id": anchor(name),
        "name": name,
        "method": words.short_name(f),
        "deciding": f.quantities.get(f.headline),
        "others": {key: q for key, q in f.quantities.items() if key != f.headline},
        "verdict": words.verdict(f),
        "tool_error": words.tool_error(readings),
        "readings": _records(readings),
        "figures": [_figure(name, key, figure, inline) for key, figure in f.figures.items()],
        "tables": [_table(key, table) for key, table in f.tables.items()],
        "papers": [(slug, paper_title(slug)) for slug in f.papers],
        "arrays": {key: f"{a.dtype} {list(a.shape)}" for key, a in f.arrays.items()},
    }


def _figure(instrument: str, key: str, figure: Figure, inline: bool) -> dict[str, Any]:
    rows = figure_rows(figure.spec)
    drawn = _drawn(figure)
    picture = _pictures(rows)
    grid = None if picture else _pivot(figure.spec, rows)
    columns: list[str] = []
    if not picture and grid is None:
        columns = list(dict.fromkeys(field for row in rows for field in row))
    said = "" if picture or drawn else described(figure.spec, rows)
    return {
        "instrument": instrument,
        "key": key,
        "title": figure.title,
        "caption": figure.caption or said[:1].upper() + said[1:],
        "label": " ".join(filter(None, (f"{figure.title}.", figure.caption, said))),
        "pictures": picture,
        "drawing": drawn,
        "grid": grid,
        "columns": columns,
        "rows": [[row.get(c) for c in columns] for row in rows[:FIGURE_ROWS]] if columns else [],
        "total": len(rows),
        "drawable": bool(rows),
        "spec": script_json(encode_json(figure.spec)) if inline and not picture and not drawn else "",
    }


def _drawn(figure: Figure) -> str:
    """A drawing as SVG; what its data hold beyond shapes and words is not shown."""
    if not is_drawing(figure):
        return ""
    # A stored finding may hold anything.
    with suppress(KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return svg(figure)
    return ""


def _pictures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Images in rows and columns are plain HTML: they show without any script."""
    if not rows or not all(str(row.get("image", "")).startswith("data:image/png;base64,") for row in rows):
        return None
    down = list(dict.fromkeys(row.get("row") for row in rows))
    over = list(dict.fromkeys(row.get("column") for row in rows))
    at = {(row.get("row"), row.get("column")): {**row, "signed": row.get("signed") is True} for row in rows}
    return {
        "columns": over,
        "rows": [(name, [at.get((name, column)) for column in over]) for name in down],
        "signed": any(row["signed"] for row in at.values()),
    }


def _pivot(spec: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The numbers of a heatmap are a matrix, and read as one."""
    if not rows or any(set(row) != {"row", "column", "value"} for row in rows):
        return None
    down = list(dict.fromkeys(str(row["row"]) for row in rows))
    over = list(dict.fromkeys(str(row["column"]) for row in rows))
    at = {(str(row["row"]), str(row["column"])): row["value"] for row in rows}
    return {"columns": over, "rows": [(name, [at.get((name, column)) for column in over]) for name in down]}


def _table(key: str, table: Table) -> dict[str, Any]:
    numeric = [
        all(isinstance(row[i], int | float) or row[i] is None for row in table.rows) and bool(table.rows)
        for i in range(len(table.columns))
    ]
    return {
        "caption": table.caption or key,
        "columns": table.columns,
        "rows": table.rows[:TABLE_ROWS],
        "total": len(table.rows),
        "numeric": numeric,
    }


def _records(records: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if not records:
        return None
    columns = list(dict.fromkeys(key for record in records for key in record))
    return {"columns": columns, "rows": [[record.get(c) for c in columns] for record in records]}


def seconds_text(seconds: float) -> str:
    """Render a duration for people."""
    if seconds >= 90:
        return f"{int(seconds // 60)} min {round(seconds % 60)} s"
    return f"{format_number(round(seconds, 3))} s"


def paper_title(slug: str) -> str:
    """Return the title the bibliography has for a paper, or nothing."""
    try:
        from microtome.papers import bibliography

        return str(bibliography.paper(slug).title)
    except Exception:  # a report must come out whatever the state of the bibliography
        return ""


def script_json(data: bytes) -> str:
    """Make JSON safe inside a script element: no ``<``, ``>`` or ``&`` is left, and it parses the same."""
    plain = data.decode()
    # Outside strings JSON has none of these characters, so the escapes only ever land inside strings.
    for character in "<>&\u2028\u2029":
        plain = plain.replace(character, f"\\u{ord(character):04x}")
    return plain


# --- keeping it small --------------------------------------------------------------------------------


def _fitted(exam: Examination, taken: int) -> tuple[Examination, str]:
    """Thin, then drop figure data, the largest first, until the report is below its cap; say where.

    Args:
        taken: characters that the page has besides.
    """
    weights = {
        (name, key): len(encode_json(figure.spec))
        for name, finding in exam.findings.items()
        for key, figure in finding.figures.items()
    }
    # Libraries and text, then every figure's data: once as JSON, and up to as much again as a table.
    rest = len(encode_json(exam)) - sum(weights.values())
    room = SIZE_CAP - len(library()) - 3 * rest - taken - 200_000
    if 2 * sum(weights.values()) <= room:
        return exam, ""
    findings = dict(exam.findings)
    thinned = dropped = 0
    for target in (200_000, 40_000, 0):
        for (name, key), weight in sorted(weights.items(), key=lambda item: -item[1]):
            if 2 * sum(weights.values()) <= room:
                break
            if weight <= max(target, 2_000):
                continue
            finding = findings[name]
            smaller = _thinner(finding.figures[key], weight, target)
            findings[name] = msgspec.structs.replace(finding, figures=finding.figures | {key: smaller})
            weights[name, key] = len(encode_json(smaller.spec))
            thinned += target > 0
            dropped += target == 0
    parts = [f"{thinned} thinned" if thinned else "", f"{dropped} left out" if dropped else ""]
    said = f"To keep this file below {SIZE_CAP // 1_000_000} MB, figures were reduced: "
    said += ", ".join(p for p in parts if p) + ". The store has them whole."
    return msgspec.structs.replace(exam, findings=findings), said


def _thinner(figure: Figure, weight: int, target: int) -> Figure:
    rows = figure_rows(figure.spec)
    keep = len(rows) * target // max(weight, 1)
    whole = _pictures(rows) or _pivot(figure.spec, rows)  # a picture or a matrix with holes would mislead
    if keep < 20 or whole or "data" not in figure.spec:
        said = "The data of this figure were left out to keep the file small; the store has them."
        empty = {"data": {"values": []}, "mark": "point"}
        return msgspec.structs.replace(figure, spec=empty, caption=f"{figure.caption} {said}".strip())
    kept = [rows[round(i * (len(rows) - 1) / (keep - 1))] for i in range(keep)]
    said = f"{keep} of {len(rows)} points are drawn, to keep the file small."
    spec = figure.spec | {"data": figure.spec["data"] | {"values": kept}}
    return msgspec.structs.replace(figure, spec=spec, caption=f"{figure.caption} {said}".strip())


# --- the pieces of the page --------------------------------------------------------------------------


def own(name: str) -> str:
    """Text of a file of this package."""
    return files("microtome.report").joinpath(name).read_text(encoding="utf-8")


@cache
def library() -> str:
    """The vendored libraries that draw charts, with their licences, as one script."""
    folder = files("microtome.report").joinpath("vendor")
    parts = []
    for name in _LIBRARIES:
        licence = folder.joinpath(f"{name}.LICENSE").read_text(encoding="utf-8").replace("*/", "")
        code = folder.joinpath(f"{name}.min.js").read_text(encoding="utf-8")
        code = code.split("//# sourceMappingURL")[0]  # the map is not here, and a debugger would ask for it
        parts.append(f"/*! {name}\n{licence.strip()}\n*/\n{code.strip()}")
    return "\n".join(parts)


def script_hash(script: str) -> str:
    """What a content-security policy calls the script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _template(name: str) -> str | None:
    found = files("microtome.report").joinpath(name)
    return found.read_text(encoding="utf-8") if found.is_file() else None


def counted(count: int, word: str = "finding") -> str:
    """Return the number with its noun."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


@cache
def environment(others: jinja2.BaseLoader | None = None) -> jinja2.Environment:
    """Templates of the report, and those of ``others`` beside them; everything is escaped."""
    found = jinja2.FunctionLoader(_template)
    made = jinja2.Environment(
        loader=jinja2.ChoiceLoader([others, found]) if others else found,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "anchor": anchor,
        "cell": words.cell_text,
        "number": words.number_text,
        "count": counted,
        "duration": seconds_text,
    }
    made.tests["numeric"] = lambda value: words.number(value) is not None
    made.globals["kind"] = _kind
    return made


def _kind(value: Any) -> str:
    """How a plain value is laid out: as fields, as a table, as a list or as text."""
    if isinstance(value, Mapping):
        return "fields" if value else "text"
    if isinstance(value, list | tuple) and value:
        if all(isinstance(item, Mapping) for item in value):
            return "table"
        return "line" if all(isinstance(item, str | int | float) for item in value) else "list"
    return "text"
