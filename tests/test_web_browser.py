"""The lab in a real browser: what is drawn, what a click and a key do, and that nothing breaks the page's policy."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from web_lab import COUNT, examination, findings, trained

from microtome.finding import Figure, Finding, Quantity
from microtome.store import Store, open_store
from microtome.web import address, application, listen

sync_api = pytest.importorskip("playwright.sync_api", reason="the browser tests need the package playwright")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def browser_path() -> str:
    """A browser of this machine; ``MICROTOME_BROWSER`` names one elsewhere."""
    named = os.environ.get("MICROTOME_BROWSER", "")
    return named or next((found for name in NAMES if (found := shutil.which(name))), "")


pytestmark = pytest.mark.skipif(
    not browser_path(),
    reason="no chromium on this machine: apt-get install chromium, or set MICROTOME_BROWSER",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with open_store(tmp_path_factory.mktemp("lab")) as opened:
        opened.save(examination())
        second = examination("e2", "2026-11-22T10:00:00Z", findings=findings(1, accuracy=0.6))
        second.subject["name"] = "a pruned network"
        opened.save(second)
        opened.save(trained())
        yield opened


@pytest.fixture(scope="module")
def where(store: Store) -> Iterator[str]:
    listening: socket.socket = listen("127.0.0.1", 0, "")
    server = uvicorn.Server(uvicorn.Config(application(store), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield address(listening, "127.0.0.1").rstrip("/")
    server.should_exit = True
    thread.join(10)
    listening.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A fresh page; the test fails for anything the console complains of, a broken policy above all."""
    context = chromium.new_context(viewport={"width": 1200, "height": 800})
    opened = context.new_page()
    said: list[str] = []
    opened.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.set_default_timeout(10_000)
    yield opened
    context.close()
    assert said == []


def until(page: Any, holds: str) -> None:
    """Wait until an expression holds. Playwright's own way evaluates text inside the page, which its policy forbids."""
    for _ in range(200):
        if page.evaluate(holds):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"it never came to hold: {holds}")


def test_a_finding_opens_in_place_draws_and_survives_a_reload(page: Any, where: str) -> None:
    page.goto(f"{where}/e/e1")
    page.click("#f-reliability--calibration > summary")
    page.wait_for_selector("#f-reliability--calibration .draw svg")
    assert "watch above 0.05" in page.inner_text("#f-reliability--calibration")
    assert page.url.endswith("#f-reliability--calibration")
    page.reload()
    page.wait_for_selector("#f-reliability--calibration .draw svg")
    assert page.evaluate(
        "document.querySelector('#f-reliability--calibration').getBoundingClientRect().top < 400"
    )
    page.click("#f-reliability--calibration > summary")
    until(page, "location.hash === ''")


def test_findings_are_sifted_by_words(page: Any, where: str) -> None:
    page.goto(f"{where}/e/e1#%")  # an address that was typed wrong
    page.keyboard.press("/")
    page.keyboard.type("explain SMALLEST")
    until(page, "document.querySelector('[data-sift] [role=status]').textContent === 'None has these words.'")
    page.fill("#sift", "reliability believed")
    until(page, "document.querySelector('[data-sift] [role=status]').textContent.startsWith('1 of ')")
    seen = "[...document.querySelectorAll('details.finding')].filter((d) => d.offsetParent).map((d) => d.id)"
    assert page.evaluate(seen) == ["f-reliability--calibration"]
    page.fill("#sift", "")
    until(page, "document.querySelectorAll('section.room[hidden]').length === 0")


def test_a_stored_figure_has_no_say_in_how_it_is_drawn(page: Any, where: str, store: Store) -> None:
    """Vega-Embed takes options from a specification: menus that lead away, other loaders. None are asked for."""
    rows = {"values": [{"a": 1, "b": 2}]}
    asked = {
        "embedOptions": {"actions": True, "renderer": "canvas", "sourceHeader": "<script>alert(1)</script>"}
    }
    spec = {
        "data": rows,
        "mark": "bar",
        "usermeta": asked,
        "encoding": {"x": {"field": "a", "type": "quantitative"}},
    }
    away = spec | {"data": {"url": "/e/e1/state"}}
    linked = spec | {"encoding": {"href": {"value": "javascript:alert(1)"}, "x": {"field": "a"}}}
    made = {k: Figure(title=k, spec=v) for k, v in {"menu": spec, "linked": linked}.items()}
    layered = {"data": rows, "layer": [away]}
    made["away"] = Figure(title="away", spec=layered)
    found = Finding(instrument="a/odd", headline="x", quantities={"x": Quantity(value=1)}, figures=made)
    store.save(examination("odd", findings={"a/odd": found}))
    asked_for: list[str] = []
    page.on("request", lambda request: asked_for.append(request.url))
    try:
        page.goto(f"{where}/e/odd/f/a/odd")
        until(page, "document.querySelectorAll('.draw svg, .draw .quiet').length === 3")
        assert page.locator(".draw canvas, details.vega-embed, .vega-actions").count() == 0
        assert page.evaluate(
            "[...document.querySelectorAll('.draw a')].map((a) => a.getAttribute('href'))"
        ) in ([], [None])
        assert not any(url.endswith("/state") for url in asked_for)
    finally:
        store.delete("odd")


def test_the_list_narrows_while_one_types(page: Any, where: str) -> None:
    page.goto(where)
    assert page.locator("tr[data-item]").count() == 3
    page.keyboard.press("/")
    page.keyboard.type("pruned")
    until(page, "document.querySelectorAll('tr[data-item]').length === 1")
    assert "words=pruned" in page.url
    page.reload()
    assert page.locator("tr[data-item]").count() == 1


def test_keys_alone_lead_through_the_lab(page: Any, where: str) -> None:
    page.goto(where)
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    page.wait_for_url("**/e/e2")
    page.keyboard.press("]")
    page.wait_for_url("**/layers")
    page.keyboard.press("]")
    page.wait_for_url("**/examples")
    page.keyboard.press("?")
    assert page.locator("dialog[open]").count() == 1
    page.keyboard.press("?")
    page.keyboard.press("g")
    page.wait_for_url(f"{where}/")


def test_a_layer_is_chosen_in_the_matrix_and_in_the_diagram(page: Any, where: str) -> None:
    page.goto(f"{where}/e/e1/layers")
    assert page.inner_text("#layer h2").startswith("fc")
    page.click("a[data-layer='relu#2'] >> nth=0")
    until(page, "document.querySelector('#layer h2').textContent.startsWith('relu#2')")
    assert page.url.endswith("?layer=relu%232")
    page.click("rect[data-layer='stem']")
    until(page, "document.querySelector('#layer h2').textContent.startsWith('stem')")
    page.focus("rect[data-layer='relu']")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#layer h2').textContent.startsWith('relu')")
    assert page.locator("rect[aria-current]").get_attribute("data-layer") == "relu"


def test_a_unit_is_chosen_by_number_by_key_and_by_link(page: Any, where: str) -> None:
    page.goto(f"{where}/e/e1/layers?layer=relu")
    assert page.inner_text("#unit h3").startswith("Unit 7 of relu")
    page.fill("#unit-at", "2")
    until(page, "document.querySelector('#unit h3').textContent.startsWith('Unit 2 ')")
    page.focus("#unit-at")
    page.keyboard.press("ArrowUp")
    until(page, "document.querySelector('#unit h3').textContent.startsWith('Unit 3 ')")
    assert page.url.endswith("?layer=relu&unit=3")
    page.focus("a[data-unit='5']")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#unit h3').textContent.startsWith('Unit 5 ')")
    assert page.input_value("#unit-at") == "5"
    assert page.locator("a[data-unit][aria-current]").inner_text() == "5"
    page.click("#unit a.cell >> nth=0")
    page.wait_for_url("**/e/e1/examples/50")
    page.goto(f"{where}/e/e1/layers?layer=relu&unit=1")
    assert page.inner_text("#unit h3").startswith("Unit 1 of relu")


def test_the_grid_holds_only_what_is_looked_at(page: Any, where: str) -> None:
    page.goto(f"{where}/e/e1/examples")
    until(page, "document.querySelector('.grid').dataset.started")
    whole = page.evaluate("document.documentElement.scrollHeight")
    assert page.locator(".cell").count() < COUNT
    assert whole > 3000
    page.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
    cells = page.evaluate("fetch('/e/e1/examples/cells?from=240').then((a) => a.json())")["cells"]
    until(
        page,
        f"[...document.querySelectorAll('a.cell')].at(-1)?.href.includes('/examples/{cells[-1]['id']}?')",
    )
    assert page.locator(".cell").count() < COUNT
    assert abs(page.evaluate("document.documentElement.scrollHeight") - whole) < 60
    page.check("input[name=wrong]")
    until(page, "document.querySelector('[data-total]').textContent.startsWith('30 ')")
    page.fill("#row", "17")
    page.press("#row", "Enter")
    page.wait_for_url("**/examples/17?*")
    assert "Why is example 17 wrong?" in page.inner_text("h1")


def test_scrubbing_moves_every_line(page: Any, where: str) -> None:
    page.goto(f"{where}/compare?of=t1")
    assert page.inner_text(".here") == "0.9"
    page.focus("#at")
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    assert page.inner_text("output") == "step 0" and page.inner_text(".here") == "0.1"
    assert page.locator("circle.on").get_attribute("data-at") == "0"


def test_marked_examinations_are_compared(page: Any, where: str) -> None:
    page.goto(where)
    assert page.is_disabled("button[data-needs]")
    page.check("input[value=e1]")
    page.check("input[value=e2]")
    page.click("button[data-needs]")
    page.wait_for_url("**/compare?of=e1&of=e2")  # the older first, though the list is newest first
    assert "Larger than noise" in page.inner_text("main")


def test_two_groups_are_put_together_by_key(page: Any, where: str, store: Store) -> None:
    for i in range(4):
        exam = examination(f"run-{i}", f"2026-11-24T10:0{i}:00Z", findings=findings(i, 0.9 if i < 2 else 0.5))
        exam.subject["name"] = f"seed {i}"
        store.save(exam)
    page.goto(f"{where}/compare")
    page.click("text=Compare two groups of runs")
    for i in range(4):
        page.focus(f"input[name='g.run-{i}'][value='']")
        page.keyboard.press("ArrowLeft" if i > 1 else "ArrowRight")  # from neither to B, or round to A
    page.keyboard.press("Enter")
    page.wait_for_url("**/compare?groups=1&a=run-0&a=run-1&b=run-2&b=run-3")
    assert "Welch's t over 2 and 2 runs" in page.content()
    assert page.is_checked("input[name='g.run-1'][value='a']") and page.is_checked(
        "input[name='g.run-3'][value='b']"
    )
    page.click("text=Take them as pairs")
    until(page, "document.body.textContent.includes('paired t over 2 pairs')")


def test_a_tag_is_given_and_taken(page: Any, where: str, store: Store) -> None:
    page.goto(f"{where}/e/e1")
    page.fill("#add", "mine")
    page.press("#add", "Enter")
    page.wait_for_selector("a.tag")
    assert store.all_tags() == [("mine", 1)]
    page.click("button[name=remove]")
    until(page, "!document.querySelector('a.tag')")
    assert store.all_tags() == []


def test_a_running_examination_fills_itself(page: Any, where: str, store: Store) -> None:
    store.begin(examination("run1", "2026-11-23T10:00:00Z", findings={}))
    try:
        page.goto(f"{where}/e/run1")
        assert "this page fills itself" in page.inner_text("main")
        made = {"x": Quantity(value=2)}
        store.save_finding(
            "run1", Finding(instrument="a/first", headline="x", question="Is it?", quantities=made)
        )
        page.wait_for_selector("#f-a--first")
        page.click("#f-a--first > summary")
        page.wait_for_selector("#f-a--first article")
        store.save_finding("run1", Finding(instrument="a/second", headline="x", quantities=made))
        page.wait_for_selector("#f-a--second")
        assert page.locator("#f-a--first[open] article").count() == 1  # what was open stays open
    finally:
        store.delete("run1")


def test_what_begins_and_ends_is_in_the_list(page: Any, where: str, store: Store) -> None:
    page.goto(where)
    store.begin(examination("run2", "2026-11-25T10:00:00Z", findings={}))
    try:
        page.wait_for_selector("#results a[href='/e/run2']")
        assert "running" in page.inner_text("#results")
        store.finish("run2", "complete")
        until(page, "!document.querySelector('#results').textContent.includes('running')")
        assert page.locator("#results a[href='/e/run2']").count() == 1
    finally:
        store.delete("run2")


@pytest.fixture(scope="module", params=["light", "dark"])
def narrow(chromium: Any, request: pytest.FixtureRequest) -> Iterator[tuple[Any, str]]:
    """A page of 400 pixels, and the colours its system asks for."""
    context = chromium.new_context(viewport={"width": 400, "height": 800}, color_scheme=request.param)
    yield context.new_page(), request.param
    context.close()


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/e/e1",
        "/e/e1/layers",
        "/e/e1/layers?layer=relu&unit=2",
        "/e/e1/examples",
        "/e/e1/examples/17",
        "/compare?of=e1&of=e2",
        "/compare?groups=1&a=e1,t1&b=e2,e1x",
        "/compare?groups=1",
    ],
)
def test_narrow_screens_light_and_dark(narrow: tuple[Any, str], where: str, path: str) -> None:
    opened, scheme = narrow
    opened.goto(where + path)
    assert opened.evaluate("document.documentElement.scrollWidth") <= 400
    ink, paper = opened.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        ".map((c) => c.match(/\\d+/g).slice(0, 3).map(Number))"
    )
    assert _contrast(ink, paper) > 7
    soft = opened.evaluate(
        "getComputedStyle(document.querySelector('.quiet, .eyebrow')).color.match(/\\d+/g).map(Number)"
    )
    assert _contrast(soft[:3], paper) > 4.5
    assert (sum(paper) < 200) == (scheme == "dark")
    turned = opened.evaluate(
        "[...document.querySelectorAll('img.signed')].map((i) => getComputedStyle(i).filter)"
    )
    assert len(turned) == (3 if path.endswith("/17") else 0)
    assert all((each != "none") == (scheme == "dark") for each in turned)  # no white ground on a dark page
    gaps = opened.evaluate(GAPS)
    assert all(gap >= 4 for gap in gaps) and bool(gaps) == ("of=e1&of=e2" in path)


# Between the mark of an interval and the word beside it, in pixels.
GAPS = """
[...document.querySelectorAll('.diff tr')].filter((row) => row.querySelector('.badge')).map((row) =>
  row.querySelector('.badge').getBoundingClientRect().left - row.querySelector('.mark').getBoundingClientRect().right)
"""


def _contrast(a: list[int], b: list[int]) -> float:
    def light(colour: list[int]) -> float:
        parts = [
            c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour
        ]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_without_scripts_every_page_still_works(chromium: Any, where: str) -> None:
    context = chromium.new_context(java_script_enabled=False)
    try:
        opened = context.new_page()
        opened.goto(f"{where}/e/e1")
        opened.click("#f-reliability--calibration > summary")
        opened.click("#f-reliability--calibration .inside a")
        assert "a stated source" in opened.inner_text("main")
        opened.goto(f"{where}/e/e1/examples")
        opened.click("a[rel=next]")
        assert "page 2 of 5" in opened.inner_text("main")
        opened.goto(f"{where}/e/e1/layers?layer=relu")
        opened.fill("#unit-at", "4")
        opened.click("form[data-unit-form] button")
        assert opened.inner_text("#unit h3").startswith("Unit 4 of relu")
    finally:
        context.close()


def test_what_cannot_be_loaded_says_so_and_can_be_tried_again(chromium: Any, where: str) -> None:
    context = chromium.new_context()
    try:
        opened = context.new_page()
        opened.goto(f"{where}/e/e1")
        opened.route("**/f/**", lambda route: route.abort())
        opened.click("#f-reliability--calibration > summary")
        opened.wait_for_selector(".note.failed button")
        opened.unroute("**/f/**")
        opened.click(".note.failed button")
        opened.wait_for_selector("#f-reliability--calibration article")
    finally:
        context.close()
