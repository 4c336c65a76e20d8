"""The atlas as pages: an index by question and by verdict, and a page a paper."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from microtome.finding import Figure
from microtome.report.html import ROOMS, _environment, _hash, _library, _own, script_json

VERDICTS = ("reproduced", "partly", "not reproduced", "inconclusive")
QUESTIONS = ROOMS | {
    "learn": "How can it be trained otherwise?",
    "context": "What else does one need to know?",
    "apply": "What is it good for?",
}
BADGES = {"reproduced": "good", "partly": "watch", "not reproduced": "alarm", "inconclusive": "watch"}
SCRIPT = "assets/vega.js"


def pages(entries: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """(path, text) of every file; ``entries`` are those of :mod:`microtome.atlas`."""
    yield "assets/report.css", _own("report.css") + _own("atlas.css")
    yield SCRIPT, _library()
    facts = [summary(entry) for entry in entries]
    yield "atlas.json", json.dumps(facts, indent=1)
    yield "index.html", _index(facts)
    titles = {each["slug"]: each["title"] for each in facts}
    for entry in entries:
        yield f"{entry.standing.paper.slug}.html", page(entry, titles)


def summary(entry: Any) -> dict[str, Any]:
    """What the index says of one paper."""
    paper, record = entry.standing.paper, entry.record
    return {
        "id": paper.id,
        "slug": paper.slug,
        "name": paper.name,
        "title": paper.title,
        "kind": paper.kind,
        "room": paper.room,
        "question": QUESTIONS.get(paper.room, ""),
        "state": entry.standing.state,
        "verdict": record["verdict"] if record else None,
        "decided_by": record["decided_by"] if record else None,
        "uses": list(entry.standing.leaves),
    }


def _index(facts: Sequence[dict[str, Any]]) -> str:
    rooms = [(room, QUESTIONS[room], [f for f in facts if f["room"] == room]) for room in QUESTIONS]
    verdicts = Counter(f["verdict"] for f in facts if f["verdict"])
    script = _own("atlas.js")
    return (
        _environment()
        .get_template("atlas.html.j2")
        .render(
            rooms=[(room, question, found) for room, question, found in rooms if found],
            by_verdict=[(v, [f for f in facts if f["verdict"] == v]) for v in VERDICTS if verdicts[v]],
            states=Counter(f["state"] for f in facts),
            total=len(facts),
            badges=BADGES,
            script=script,
            script_hash=_hash(script),
        )
    )


def page(entry: Any, titles: dict[str, str]) -> str:
    """One paper's page."""
    record = entry.record
    figure = msgspec.convert(record["figure"], Figure) if record and record.get("figure") else None
    drawn = {"findings": {"study": {"figures": {"figure": {"spec": figure.spec}}}}} if figure else {}
    script = _own("draw.js") if figure else ""
    return (
        _environment()
        .get_template("paper.html.j2")
        .render(
            paper=entry.standing.paper,
            standing=entry.standing,
            question=QUESTIONS.get(entry.standing.paper.room, ""),
            study=entry.study,
            module=entry.module,
            record=record,
            numbers=list(record["numbers"].items()) if record else [],
            figure=figure,
            uses=entry.standing.leaves,
            instrument=next((leaf for leaf in entry.standing.leaves if "/" in leaf), None),
            relates=[(slug, titles.get(slug, slug), *found) for slug, found in entry.relates.items()],
            badges=BADGES,
            data=script_json(json.dumps(drawn).encode()),
            library=SCRIPT,
            script=script,
            script_hash=_hash(script) if script else "",
        )
    )


__all__ = ["QUESTIONS", "VERDICTS", "page", "pages", "summary"]
