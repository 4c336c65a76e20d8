"""The pages, one function a route."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response

from microtome.errors import StoreError, UsageError
from microtome.finding import Examination, Finding, encode_json, format_number
from microtome.report import answers, marks, single
from microtome.report import layers as of_layers
from microtome.report.atlas import index_of, paper_of, summary
from microtome.report.html import ROOMS, facts_of, part_of, report_html, script_json, worries_of
from microtome.report.text import UNMEASURED, anchor
from microtome.store import Filter, Line
from microtome.web import rows
from microtome.web.lab import Lab
from microtome.web.progress import progress_of
from microtome.web.render import page, statics

PAGE = 50
CELLS = 60
BESIDE = 3
"""Examinations that a page offers to be compared with."""
EXAMPLES = "reliability/examples"
"""What the pages name to those who want to know how single examples were answered."""
MAPPER = "explain/integrated_gradients"
"""What they name to those who want a map of an example."""
STATUSES = ("complete", "running", "partial", "stopped")
TAB = {"examination": "Examination", "layers": "Layers", "examples": "Examples"}


def show(lab: Lab, request: Request, template: str, status: int = 200, /, **context: Any) -> Response:
    """Render a page; with ``?bare=1`` only its own part, for a page that is already open."""
    bare = request.query_params.get("bare") == "1"
    base = request.scope.get("root_path", "")
    layout = "bare.html.j2" if bare else "lab.html.j2"
    shared = {"base": base, "layout": layout, "bare": bare, "store": lab.store.location.text()}
    shared |= {"here": request.url.path.removeprefix(base), "chosen": dict(request.query_params)}
    return HTMLResponse(page(template, shared | {"exam_tab": "", "line": None} | context), status_code=status)


def trouble(lab: Lab, request: Request, status: int, said: str) -> Response:
    """A page for what went wrong."""
    if request.url.path.endswith(("/state", "/cells")):
        return JSONResponse({"error": said}, status_code=status)
    exam = request.path_params.get("exam", "")
    line = next(iter(lab.lines([exam])), None) if status != 503 else None
    return show(lab, request, "trouble.html.j2", status, code=status, said=said, line=line)


# --- subjects and examinations -----------------------------------------------------------------------


def subjects(lab: Lab, request: Request) -> Response:
    """What has been examined, when, and with what grade."""
    given = request.query_params
    grade = given.get("grade", "")
    chosen = Filter(
        words=given.get("words", "")[:200],
        subject=given.get("subject", "")[:400],
        status=given.get("status", "") if given.get("status") in STATUSES else "",
        grade=grade if grade in ("alarm", "watch") else "",  # type: ignore[arg-type]
        tag=given.get("tag", "")[:64],
    )
    at = _whole(given.get("page", "1"), 1, 10**6)
    lines, total = lab.store.page(chosen, (at - 1) * PAGE, PAGE)
    return show(
        lab,
        request,
        "subjects.html.j2",
        lines=lines,
        total=total,
        at=at,
        pages=max(1, -(-total // PAGE)),
        statuses=STATUSES,
        filtered=chosen != Filter(),
        **({} if given.get("bare") == "1" else _around(lab)),
    )


def _around(lab: Lab) -> dict[str, Any]:
    """What stands around the list, and does not change while one narrows it."""
    return {"subjects": lab.store.subjects(), "tags": lab.store.all_tags(), "running": _running(lab)}


def running(lab: Lab, request: Request) -> Response:
    """What runs now; asked for again and again by the open page."""
    return show(lab, request, "running.html.j2", running=_running(lab))


def _running(lab: Lab) -> list[dict[str, Any]]:
    ids = lab.store.running()
    return [progress_of(line, lab.progress(line)) for line in lab.lines(ids)]


def retag(lab: Lab, request: Request) -> Response:
    """Give or take a tag, and go back."""
    line = _line(lab, request)
    form: dict[str, str] = request.state.form
    if "remove" in form:
        lab.store.untag(line.id, form["remove"][:64])
    elif form.get("add", "").strip():
        lab.store.tag(line.id, form["add"])
    return RedirectResponse(f"{request.scope.get('root_path', '')}/e/{line.id}", status_code=303)


# --- one examination ---------------------------------------------------------------------------------


def _line(lab: Lab, request: Request) -> Line:
    exam_id = request.path_params["exam"]
    return lab.line(lab.store.resolve("latest") if exam_id == "latest" else exam_id)


def examination(lab: Lab, request: Request) -> Response:
    """What deserves worry, then every finding by room."""
    line = _line(lab, request)
    if request.path_params["exam"] == "latest":
        return RedirectResponse(f"{request.scope.get('root_path', '')}/e/{line.id}", status_code=307)
    reading = lab.reading(line)
    exam = reading.exam
    return show(
        lab,
        request,
        "examination.html.j2",
        line=line,
        exam=exam,
        exam_tab="examination",
        damaged=reading.damaged,
        facts=list(facts_of(exam)),
        worries=list(worries_of(exam)),
        rooms=rows.rooms(exam),
        room_questions=ROOMS,
        unmeasured={s: [f for f in exam if f.status == s] for s in UNMEASURED},
        answers=_answers(lab, line, exam),
        progress=progress_of(line, lab.progress(line)) if line.status == "running" else None,
    )


def _answers(lab: Lab, line: Line, exam: Examination) -> list[dict[str, Any]]:
    """The short answers, each with the place in the lab that says more, and where to see what changed."""
    here = f"/e/{line.id}/"
    shown = []
    for each in answers.answers(exam):
        to = here + each["screen"] if each["screen"] else f"#{anchor(each['finding'])}"
        shown.append(each | {"to": to, "links": [(text, here + path) for text, path in each["links"]]})
    beside: dict[str, Any] = {
        "grade": None, "to": f"/compare?of={line.id}", "links": [], "screen": "",
    }  # fmt: skip
    if any("trajectory" in f.tables for f in exam):
        said = "Its checkpoints: every deciding number along training, to scrub through."
        shown.append(beside | {"question": "How did it come to this?", "said": said})
    elif shown:
        said = (
            "Set it beside another: before and after pruning, two seeds. What is more than noise comes first."
        )
        links = [
            (
                other.subject or other.id,
                f"/compare?{urlencode({'by': 'time', 'of': (line.id, other.id)}, doseq=True)}",
            )
            for other in _beside(lab, line, exam)
        ]
        shown.append(beside | {"question": "What changed?", "said": said, "links": links})
    return shown


def _beside(lab: Lab, line: Line, exam: Examination) -> list[Line]:
    """A few examinations of the same kind that are nearest in time: what it was before, or what became of it."""
    some = [each for each in lab.store.page(Filter(status="complete"), 0, PAGE)[0] if each.id != line.id]
    newer = [each for each in some if each.created > line.created][::-1]
    nearest = [*newer, *[each for each in some if each.created <= line.created]][: 2 * BESIDE]
    subjects = lab.store.described([each.id for each in nearest])
    alike = ("task", "classes", "examples", "input")
    fit = [
        each
        for each in nearest
        if all(subjects.get(each.id, {}).get(k) == exam.subject.get(k) for k in alike)
    ]
    return fit[:BESIDE]


def state(lab: Lab, request: Request) -> Response:
    """How far an examination is, for the page that shows it."""
    line = _line(lab, request)
    found = progress_of(line, lab.progress(line))
    return JSONResponse({key: found[key] for key in ("status", "found", "text", "share", "mark")})


def finding(lab: Lab, request: Request) -> Response:
    """One finding with its tables and figures."""
    line = _line(lab, request)
    reading = lab.reading(line)
    name = request.path_params["finding"]
    if name in reading.damaged:
        return trouble(lab, request, 500, f"{name}: {reading.damaged[name]}")
    f = reading.exam.findings.get(name)
    if f is None:
        return trouble(lab, request, 404, f"there is no finding '{name[:120]}' in this examination")
    made = part_of(name, f, reading.exam.calibration.get(name, []), inline=True)
    for figure in made["figures"]:
        if len(figure["spec"]) > rows.LARGEST_FIGURE:
            figure["spec"], figure["drawable"] = "", False
            figure["caption"] = (
                f"{figure['caption']} Too large to draw here ({figure['total']} rows).".strip()
            )
    lost = _lost(lab, line, f) if f.arrays else ""
    return show(
        lab, request, "finding.html.j2", line=line, exam_tab="examination", part=made, name=name, lost=lost
    )


def report(lab: Lab, request: Request) -> Response:
    """The report of the examination, as one file to keep."""
    line = _line(lab, request)
    text = report_html(lab.whole(line))
    name = f'attachment; filename="{line.id}.html"'
    return HTMLResponse(text, headers={"content-disposition": name})


# --- the atlas ---------------------------------------------------------------------------------------


def atlas(lab: Lab, request: Request) -> Response:
    """The papers: claim, measurement, verdict."""
    entries = lab.atlas.entries(0.3)
    if entries is None:
        return _waiting(lab, request)
    facts = [summary(entry) for entry in entries]
    base = request.scope.get("root_path", "")
    return show(lab, request, "papers.html.j2", **index_of(facts), link=lambda slug: f"{base}/atlas/{slug}")


def paper(lab: Lab, request: Request) -> Response:
    """One paper's page."""
    entries = lab.atlas.entries(0.3)
    if entries is None:
        return _waiting(lab, request)
    slug = request.path_params["slug"]
    titles = {each.standing.paper.slug: each.standing.paper.title for each in entries}
    entry = next((each for each in entries if each.standing.paper.slug == slug), None)
    if entry is None:
        return trouble(lab, request, 404, f"there is no paper '{slug[:120]}' in the atlas")
    shown = paper_of(entry, titles)
    if shown["figure"]:
        shown["spec"] = script_json(encode_json(shown["figure"].spec))
    base = request.scope.get("root_path", "")
    return show(
        lab, request, "paper_page.html.j2", **shown, link=lambda s: f"{base}/atlas/{s}", home=f"{base}/atlas"
    )


def _waiting(lab: Lab, request: Request) -> Response:
    return show(
        lab, request, "waiting.html.j2", 503 if lab.atlas.failed else 200, failed=lab.atlas.failed,
        known=lab.atlas.known,
    )  # fmt: skip


# --- files -------------------------------------------------------------------------------------------


def static(lab: Lab, request: Request) -> Response:
    """A file of the package, by its name in a fixed list."""
    found = statics().get(request.path_params["name"])
    if found is None:
        return PlainTextResponse("there is no such file\n", status_code=404)
    content, kind = found
    keep = "public, max-age=31536000, immutable" if request.query_params.get("v") else "no-cache"
    return Response(content, media_type=kind, headers={"cache-control": keep})


def icon(lab: Lab, request: Request) -> Response:
    """The icon browsers ask for by themselves."""
    content, kind = statics()["icon.svg"]
    return Response(content, media_type=kind)


def layers(lab: Lab, request: Request) -> Response:
    """Every layer with all that was measured of it."""
    line = _line(lab, request)
    exam = lab.reading(line).exam
    found = of_layers.layers(exam)
    wanted = request.query_params.get("layer", "")
    wasteful = of_layers.wasteful(exam)
    if not wanted and found:
        wanted = wasteful[0]["layer"] if wasteful else found[0].name
    chosen = next((layer for layer in found if layer.name == wanted), None)
    read = {
        f.instrument: lab.arrays(line, f) for f in exam if any(k.endswith(f"/{wanted}") for k in f.arrays)
    }
    bare = request.query_params.get("bare") == "1"
    drawing, drawing_title = ("", "") if bare else of_layers.wiring(exam, found)
    return show(
        lab,
        request,
        "layer.html.j2" if bare else "layers.html.j2",
        unit=_unit(lab, line, request, wanted, read) if chosen else None,
        line=line,
        exam_tab="layers",
        layers=found,
        matrix=None if bare else of_layers.matrix(found),
        measures={m.label: m.says for m in of_layers.MEASURES},
        wasteful=wasteful[:3],
        waste=next((each for each in wasteful if each["layer"] == wanted), None),
        layer=chosen,
        wanted=wanted,
        drawing=drawing,
        drawing_title=drawing_title,
        kept_units=_kept_units(exam, wanted, [each.name for each in found]),
        likeness=of_layers.likeness(exam, wanted) if chosen else [],
        units=of_layers.units(exam, wanted, read) if chosen else [],
        bars=marks.bars,
    )


def _kept_units(exam: Examination, wanted: str, order: list[str]) -> list[str]:
    """Layers of whose units the most exciting examples are kept, those behind this one first."""
    kept = set(of_layers.with_units(exam)) - {wanted}
    at = order.index(wanted) if wanted in order else 0
    return [name for name in order[at:] + order[:at] if name in kept]


def unit(lab: Lab, request: Request) -> Response:
    """The examples that excite one unit of a layer, for the page that has the layer open."""
    line = _line(lab, request)
    wanted = request.query_params.get("layer", "")
    if request.query_params.get("bare") != "1":
        asked = urlencode({"layer": wanted, "unit": request.query_params.get("unit", "")[:12]})
        return RedirectResponse(
            f"{request.scope.get('root_path', '')}/e/{line.id}/layers?{asked}", status_code=307
        )
    exam = lab.reading(line).exam
    read = {
        f.instrument: lab.arrays(line, f) for f in exam if any(k.endswith(f"/{wanted}") for k in f.arrays)
    }
    shown = _unit(lab, line, request, wanted, read)
    if shown is None:
        return trouble(lab, request, 404, f"of the units of '{wanted[:120]}' no examples are kept")
    return show(lab, request, "unit.html.j2", line=line, wanted=wanted, unit=shown)


def _unit(
    lab: Lab, line: Line, request: Request, wanted: str, read: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, Any] | None:
    """One unit of a layer with the examples that excite it most and least; None where none are kept."""
    exam = lab.reading(line).exam
    found = of_layers.exciting(exam, wanted, read)
    if found is None:
        return None
    given = request.query_params.get("unit", "")
    at = _whole(given, 0, found.units - 1) if given else found.first
    records = lab.records(line, lambda: single.records(exam, _read(lab, line)))
    groups = []
    for word, members in found.of(at):
        cells = []
        for row, value in members:
            place = records.place(row)
            cell = (
                single.cells(records, [place], "")[0] if place is not None else {"id": row, "unknown": True}
            )
            cells.append(cell | {"value": format_number(value) if np.isfinite(value) else "–"})
        groups.append((word, cells))
    return {
        "at": at,
        "units": found.units,
        "silent": found.silent,
        "groups": groups,
        "finding": found.finding,
    }


def _read(lab: Lab, line: Line) -> dict[str, Any]:
    """Arrays of the findings that speak of single examples; damaged ones are absent."""
    exam = lab.reading(line).exam
    return {f.instrument: a for f in exam if "rows" in f.arrays and (a := lab.arrays(line, f))}


def _chosen(lab: Lab, line: Line, request: Request) -> tuple[single.Records, Any, dict[str, str]]:
    """Records, places in the order asked for, and what was asked."""
    found = lab.records(line, lambda: single.records(lab.reading(line).exam, _read(lab, line)))
    given = request.query_params
    sort = given.get("sort", "")
    if sort not in found.sorts:
        sort = "loss" if "loss" in found.sorts else next(iter(found.sorts), "")
    down = given.get("down") or ("1" if found.down.get(sort, True) else "0")
    asked = {
        "sort": sort,
        "down": "1" if down == "1" else "0",
        "wrong": "1" if given.get("wrong") == "1" else "",
    }
    asked |= {key: given.get(key, "")[:12] for key in ("label", "answer")}
    places = single.order(
        found, sort, asked["down"] == "1", asked["label"], asked["answer"], bool(asked["wrong"])
    )
    return found, places, asked


def examples(lab: Lab, request: Request) -> Response:
    """A grid of examples in the order of a number."""
    line = _line(lab, request)
    if row := request.query_params.get("row", "").strip():
        # One example, by its number; what else was asked goes along.
        kept = [(k, v) for k, v in request.query_params.items() if k not in ("row", "bare", "page")]
        path = f"/e/{line.id}/examples/{quote(row[:40], safe='')}" + (f"?{urlencode(kept)}" if kept else "")
        return RedirectResponse(request.scope.get("root_path", "") + path, status_code=307)
    found, places, asked = _chosen(lab, line, request)
    at = _whole(request.query_params.get("page", "1"), 1, 10**6)
    first = (at - 1) * CELLS
    teller = lab.reading(line).exam.findings.get(EXAMPLES)
    labels = found.arrays.get("labels")
    return show(
        lab,
        request,
        "examples.html.j2",
        line=line,
        exam_tab="examples",
        records=found,
        asked=asked,
        chunk=CELLS,
        cells=single.cells(found, places[first : first + CELLS], asked["sort"]),
        total=len(places),
        at=at,
        pages=max(1, -(-len(places) // CELLS)),
        classes=sorted(set(labels.tolist()))[:1000] if labels is not None else [],
        wrong=int(found.wrong.sum()) if found.wrong is not None else None,
        teller=EXAMPLES,
        lost="" if found.source or not teller else _lost(lab, line, teller),
        refused=teller.reason if teller and teller.status in ("refused", "failed") else "",
    )


def _lost(lab: Lab, line: Line, finding: Finding) -> str:
    """Why the arrays of a finding cannot be read; nothing where they can."""
    try:
        lab.arrays_of(line, finding)
    except StoreError as error:
        return str(error)
    return ""


def example_cells(lab: Lab, request: Request) -> Response:
    """A stretch of the grid, for the page that scrolls."""
    found, places, asked = _chosen(lab, _line(lab, request), request)
    first = _whole(request.query_params.get("from", "0"), 0, 10**9)
    made = single.cells(found, places[first : first + CELLS], asked["sort"])
    return JSONResponse({"total": len(places), "from": first, "cells": made})


def example(lab: Lab, request: Request) -> Response:
    """One example: how it was answered, what it resembles, what speaks for the answer."""
    line = _line(lab, request)
    found, places, asked = _chosen(lab, line, request)
    text = request.path_params["row"]
    if text == "worst" and len(places):
        row = int(found.rows[places[0]])
    elif text.isdigit() and len(text) < 16:
        row = int(text)
    else:
        return trouble(lab, request, 404, f"'{text[:40]}' is no example's number")
    exam, read = lab.reading(line).exam, _read(lab, line)
    place = found.place(row)
    spoken = place is not None or any((a["rows"] == row).any() for a in read.values())
    if not spoken:
        said = f"nothing is known of example {row}"
        if len(found.rows):
            said += f": {len(found.rows)} are kept here, {found.rows[0]} to {found.rows[-1]}"
        return trouble(lab, request, 404, said)
    words = single.tokens(found, place) if place is not None else []
    told = place is not None and found.wrong is not None
    order = found.rows[places].tolist() if len(places) <= 100_000 else []
    here = order.index(row) if row in order else None
    return show(
        lab,
        request,
        "example.html.j2",
        line=line,
        exam_tab="examples",
        row=row,
        asked=asked,
        told=told,
        graph=single.graph(found, place) if place is not None else ("", ""),
        cell=single.cells(found, [place], asked["sort"])[0] if place is not None else None,
        text=single.prose(words),
        top=_top(found, place) if told else [],
        numbers_here=[
            (name, format_number(float(column[place])), found.says.get(name, ""))
            for name, column in found.sorts.items()
            if place is not None and name in found.own and column[place] == column[place]
        ],
        reasons=single.reasons(found, place, exam) if place is not None else [],
        near=single.neighbours(found, place) if place is not None else [],
        otherwise=single.otherwise(found, place) if place is not None else None,
        counterfactual=single.counterfactual(found, exam, read, row),
        maps=single.maps(exam, read, row, words),
        mapped=_mapped(exam, read),
        mapper=_mapper(exam, read, row),
        numbers=list(single.numbers(exam, read, row, found.source)),
        before=order[here - 1] if here else None,
        after=order[here + 1] if here is not None and here + 1 < len(order) else None,
        nth=here,
        total=len(order),
    )


def _top(found: single.Records, place: int | None) -> list[tuple[int, float]]:
    classes, shares = found.arrays.get("classes"), found.arrays.get("probabilities")
    if place is None or classes is None or shares is None or classes.shape != shares.shape:
        return []
    if classes.ndim != 2 or classes.dtype.kind not in "iu":
        return []
    return [(int(c), float(p)) for c, p in zip(classes[place], shares[place], strict=True) if 0 <= p <= 1]


def _mapped(exam: Any, read: dict[str, Any]) -> list[int]:
    """Ids of the examples of which methods made maps."""
    ids: set[int] = set()
    for a in read.values():
        if "rows" in a and "maps" in a and a["rows"].ndim == 1:
            ids |= set(a["rows"].tolist())
    return sorted(ids)[:200]


def _mapper(exam: Any, read: dict[str, Any], row: int) -> dict[str, str]:
    """The command that makes maps of an example, or why none can."""
    able = [f.instrument for f in exam if "maps" in f.arrays and "examples" in f.options]
    refused = [f for f in exam if f.status == "refused" and f.instrument == MAPPER]
    if refused and not able:
        return {"name": MAPPER, "refused": refused[0].reason, "command": ""}
    begun = _again(exam.command)
    names = able if begun and able else [MAPPER]
    parts = [
        begun or "microtome examine ...",
        *(f"--only {n} --option '{n}.examples=[{row}]'" for n in names[:12]),
    ]
    return {"name": MAPPER, "refused": "", "command": " \\\n  ".join(parts)}


def _again(command: str) -> str:
    """The command that examined, to be gone on with: without the report it wrote; nothing where it is no command."""
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    if words[:2] != ["microtome", "examine"]:
        return ""
    if "--report" in words:
        at = words.index("--report")
        del words[at : at + 2]
    return shlex.join(words)


def compare(lab: Lab, request: Request) -> Response:
    """Examinations side by side; without a choice, a list to choose from."""
    from microtome.web import comparing

    if request.query_params.get("groups"):
        return _groups(lab, request)
    given = [v for text in request.query_params.getlist("of") for v in text.split(",") if v]
    ids = list(dict.fromkeys(given))[: comparing.MOST]
    chosen = lab.lines(ids)
    unknown = [each for each in ids if each not in {line.id for line in chosen}]
    if request.query_params.get("by") == "time":
        # Lists are newest first, and a comparison goes from before to after.
        chosen.sort(key=lambda line: (line.created, line.id))
        asked = urlencode({"of": [*(line.id for line in chosen), *unknown]}, doseq=True)
        return RedirectResponse(f"{request.scope.get('root_path', '')}/compare?{asked}", status_code=307)
    shown: dict[str, Any] = {"chosen_lines": chosen, "unknown": unknown, "courses": [], "names": []}
    shown["few"] = comparing.FEW
    if len(chosen) == 1:
        names, courses = comparing.training(lab.reading(chosen[0]).exam)
        shown |= {"names": [f"step {n}" for n in names], "courses": courses}
    elif len(chosen) == 2:
        shown |= comparing.two(*(lab.whole(line) for line in chosen))
    elif chosen:
        courses = comparing.many([lab.whole(line) for line in chosen])
        shown |= {"names": [f"{line.subject} {line.id}" for line in chosen], "courses": courses}
    if len(chosen) < 2:
        words = request.query_params.get("words", "")[:200]
        others, total = lab.store.page(Filter(words=words), 0, PAGE)
        shown |= {"others": [each for each in others if each.id not in ids], "total": total}
    return show(lab, request, "compare.html.j2", **shown)


def _groups(lab: Lab, request: Request) -> Response:
    """Two groups of runs, such as the seeds of two ways of training; without them, a list to put them together."""
    from microtome.web import comparing

    given = request.query_params
    sides: dict[str, list[Line]] = {}
    unknown: list[str] = []
    for side in ("a", "b"):
        ids = [v for text in given.getlist(side) for v in text.split(",") if v]
        # In the list each run says where it belongs, so that it cannot be on both sides.
        ids += [key[2:] for key, value in given.multi_items() if key.startswith("g.") and value == side]
        if tag := given.get(f"{side}_tag", "")[:64]:
            tagged = lab.store.page(Filter(tag=tag), 0, comparing.MOST)[0]
            ids += [
                line.id for line in sorted(tagged, key=lambda line: (line.created, line.subject, line.id))
            ]
        ids = list(dict.fromkeys(ids))[: comparing.MOST]
        sides[side] = lab.lines(ids)
        unknown += [each for each in ids if each not in {line.id for line in sides[side]}]
    paired = given.get("paired") == "1"
    if any(key.startswith("g.") or key.endswith("_tag") for key in given):
        chosen = [(side, line.id) for side, lines in sides.items() for line in lines]
        asked = urlencode([("groups", "1"), *chosen, *([("paired", "1")] if paired else [])])
        return RedirectResponse(f"{request.scope.get('root_path', '')}/compare?{asked}", status_code=307)
    both = sorted({line.id for line in sides["a"]} & {line.id for line in sides["b"]})
    shown: dict[str, Any] = {
        "sides": sides,
        "unknown": unknown,
        "paired": paired,
        "said": "",
        "comparison": None,
    }
    if both:
        shown["said"] = f"{', '.join(both[:5])} cannot be in both groups."
    elif sides["a"] and sides["b"]:
        try:
            one, two = ([lab.whole(line) for line in sides[side]] for side in ("a", "b"))
            shown |= comparing.groups(one, two, paired)
        except UsageError as error:
            shown["said"] = f"{error.what}: {error.fix}."
    elif sides["a"] or sides["b"]:
        shown["said"] = f"Group {'B' if sides['a'] else 'A'} is empty."
    words = given.get("words", "")[:200]
    others, total = lab.store.page(Filter(words=words), 0, PAGE)
    mine = [line for side in ("a", "b") for line in sides[side]]
    others = list({line.id: line for line in [*mine, *others]}.values())
    shown |= {"others": others, "total": total, "tags": lab.store.all_tags()}
    return show(lab, request, "groups.html.j2", **shown)


def _whole(text: str, low: int, high: int) -> int:
    try:
        return min(max(int(text[:12]), low), high)
    except ValueError:
        return low
