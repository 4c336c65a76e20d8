"""The pages, one function a route."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response

from microtome.errors import StoreError
from microtome.finding import encode_json
from microtome.report.atlas import index_of, paper_of, summary
from microtome.report.html import ROOMS, facts_of, part_of, report_html, script_json, worries_of
from microtome.report.text import UNMEASURED
from microtome.store import Filter, Line
from microtome.web import answers, marks, rows
from microtome.web import layers as of_layers
from microtome.web.lab import Lab
from microtome.web.render import page, statics

PAGE = 50
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
    return show(lab, request, "trouble.html.j2", status, code=status, said=said)


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
        subjects=lab.store.subjects(),
        tags=lab.store.all_tags(),
        statuses=STATUSES,
        filtered=chosen != Filter(),
        running=_running(lab),
    )


def running(lab: Lab, request: Request) -> Response:
    """What runs now; asked for again and again by the open page."""
    return show(lab, request, "running.html.j2", running=_running(lab))


def _running(lab: Lab) -> list[dict[str, Any]]:
    ids = lab.store.running()
    return [answers.progress(line, lab.store.progress(line.id)) for line in lab.store.lines(ids)]


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
        answers=answers.answers(exam),
        progress=answers.progress(line, lab.store.progress(line.id)) if line.status == "running" else None,
    )


def state(lab: Lab, request: Request) -> Response:
    """How far an examination is, for the page that shows it."""
    line = _line(lab, request)
    found = answers.progress(line, lab.store.progress(line.id))
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
    lost = ""
    if f.arrays:
        try:
            lab.store.arrays_of(line.id, f)
        except StoreError as error:
            lost = str(error)
    return show(
        lab, request, "finding.html.j2", line=line, exam_tab="examination", part=made, name=name, lost=lost
    )


def report(lab: Lab, request: Request) -> Response:
    """The report of the examination, as one file to keep."""
    line = _line(lab, request)
    text = report_html(lab.reading(line).exam)
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
        likeness=of_layers.likeness(exam, wanted) if chosen else [],
        units=of_layers.units(exam, wanted, read) if chosen else [],
        bars=marks.bars,
    )


def examples(lab: Lab, request: Request) -> Response:
    raise HTTPException(404)


def example_cells(lab: Lab, request: Request) -> Response:
    raise HTTPException(404)


def example(lab: Lab, request: Request) -> Response:
    raise HTTPException(404)


def compare(lab: Lab, request: Request) -> Response:
    """Examinations side by side; without a choice, a list to choose from."""
    from microtome.web import comparing

    given = [v for text in request.query_params.getlist("of") for v in text.split(",") if v]
    ids = list(dict.fromkeys(given))[: comparing.MOST]
    chosen = lab.store.lines(ids)
    unknown = [each for each in ids if each not in {line.id for line in chosen}]
    if request.query_params.get("swap"):
        chosen = chosen[::-1]
    shown: dict[str, Any] = {"chosen_lines": chosen, "unknown": unknown, "courses": [], "names": []}
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


def _whole(text: str, low: int, high: int) -> int:
    try:
        return min(max(int(text[:12]), low), high)
    except ValueError:
        return low
