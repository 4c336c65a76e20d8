"""The atlas as pages: an index by question and by verdict, and a page a paper."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from microtome.figures import figure_rows
from microtome.finding import Figure
from microtome.report.described import described
from microtome.report.html import ROOMS, environment, library, own, script_hash, script_json

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
    yield "assets/report.css", own("report.css") + own("atlas.css")
    yield SCRIPT, library()
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


def index_of(facts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the template of the index shows of the papers' summaries."""
    rooms = [(room, QUESTIONS[room], [f for f in facts if f["room"] == room]) for room in QUESTIONS]
    verdicts = Counter(f["verdict"] for f in facts if f["verdict"])
    return {
        "rooms": [(room, question, found) for room, question, found in rooms if found],
        "by_verdict": [(v, [f for f in facts if f["verdict"] == v]) for v in VERDICTS if verdicts[v]],
        "states": Counter(f["state"] for f in facts),
        "total": len(facts),
        "badges": BADGES,
    }


def _index(facts: Sequence[dict[str, Any]]) -> str:
    script = own("atlas.js")
    made = environment().get_template("atlas.html.j2")
    return made.render(index_of(facts), script=script, script_hash=script_hash(script), link=_file)


def _file(slug: str) -> str:
    return f"{slug}.html"


def paper_of(entry: Any, titles: dict[str, str]) -> dict[str, Any]:
    """What the template of a paper's page shows."""
    record = entry.record
    figure = msgspec.convert(record["figure"], Figure) if record and record.get("figure") else None
    return {
        "paper": entry.standing.paper,
        "standing": entry.standing,
        "question": QUESTIONS.get(entry.standing.paper.room, ""),
        "study": entry.study,
        "module": entry.module,
        "record": record,
        "numbers": list(record["numbers"].items()) if record else [],
        "figure": figure,
        "spec": "",
        "said": described(figure.spec, figure_rows(figure.spec)) if figure else "",
        "uses": entry.standing.leaves,
        "instrument": next((leaf for leaf in entry.standing.leaves if "/" in leaf), None),
        "relates": [(slug, titles.get(slug, slug), *found) for slug, found in entry.relates.items()],
        "badges": BADGES,
    }


def page(entry: Any, titles: dict[str, str]) -> str:
    """One paper's page."""
    shown = paper_of(entry, titles)
    figure = shown["figure"]
    drawn = {"findings": {"study": {"figures": {"figure": {"spec": figure.spec}}}}} if figure else {}
    script = own("draw.js") if figure else ""
    return (
        environment()
        .get_template("paper.html.j2")
        .render(
            shown,
            data=script_json(json.dumps(drawn).encode()),
            library=SCRIPT,
            script=script,
            script_hash=script_hash(script) if script else "",
            link=_file,
            home="index.html",
        )
    )


__all__ = ["QUESTIONS", "VERDICTS", "index_of", "page", "pages", "paper_of", "summary"]
