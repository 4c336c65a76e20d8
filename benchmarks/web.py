"""The lab with a large store: first paint and interactions, measured inside the browser.

1,000 examinations (copies of one of the reference network) and a grid of 10,000 examples with pictures. Every figure
is the median and the worst of ``--repeats`` tries, in milliseconds. Wanted: first paint below 1000, an interaction
below 100.
"""

from __future__ import annotations

import argparse
import shutil
import sqlite3
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

EXAMINATIONS, EXAMPLES = 1000, 10_000
COPIES = [f"copy-{i:04d}" for i in range(1, 5)]

WAIT = """
async ([act, holds]) => {
  const acts = {
    type: () => { const f = document.querySelector('#words'); f.value = '00' + (window.tries = (window.tries ?? 0) + 1);
                  f.dispatchEvent(new Event('input', { bubbles: true })); },
    grade: () => { const f = document.querySelector('#grade'); f.value = f.value ? '' : 'watch';
                   f.dispatchEvent(new Event('input', { bubbles: true })); },
    open: () => document.querySelectorAll('details.finding:not([open]) > summary')[1].click(),
    layer: () => document.querySelectorAll('.heat a[data-layer]')[window.nth = (window.nth ?? 2) + 1].click(),
    unit: () => { const f = document.querySelector('#unit-at'); f.value = window.nth = (window.nth ?? 0) + 1;
                  f.dispatchEvent(new Event('input', { bubbles: true })); },
    scroll: () => window.scrollTo(0, 4000 * (window.nth = (window.nth ?? 0) + 1)),
    sort: () => { const f = document.querySelector('#sort'); f.selectedIndex = (f.selectedIndex + 1) % 3;
                  f.dispatchEvent(new Event('input', { bubbles: true })); },
    scrub: () => { const f = document.querySelector('#at'); f.value = f.value === '0' ? 1 : 0;
                   f.dispatchEvent(new Event('input', { bubbles: true })); },
  };
  const waits = {
    filled: () => new Promise((done) => document.addEventListener('filled', done, { once: true })),
    cells: async () => {
      await new Promise(requestAnimationFrame);
      while (document.querySelector('.cell.blank')) await new Promise(requestAnimationFrame);
    },
    now: async () => {},
  };
  const begun = performance.now();
  const done = waits[holds]();
  acts[act]();
  await done;
  await new Promise((r) => requestAnimationFrame(() => setTimeout(r)));  // until it is on the screen
  return performance.now() - begun;
}
"""


def fill(folder: Path) -> tuple[str, str]:
    """Examine once, copy the rows 999 times, and make one examination with 10,000 examples; returns two ids."""
    import msgspec

    import microtome
    from microtome.reference import reference_subject
    from microtome.store import open_store

    model, data = reference_subject()
    with tempfile.TemporaryDirectory() as apart:
        exam = microtome.examine(
            model, data, store=apart, bounds=(0.0, 1.0), name="digits CNN", calibration="none"
        )
        shutil.copytree(apart, folder, dirs_exist_ok=True)
    raw = sqlite3.connect(folder / "microtome.db")
    with raw:
        for i in range(EXAMINATIONS - 2):
            new = f"copy-{i:04d}"
            raw.execute(
                "INSERT INTO examinations SELECT ?, ?, ?, status, seconds, body FROM examinations WHERE id = ?",
                (new, f"2026-01-{1 + i % 28:02d}T{i % 24:02d}:00:00Z", f"network {i % 40}", exam.id),
            )
            columns = "instrument, position, status, grade, body"
            raw.execute(
                f"INSERT INTO findings SELECT ?, {columns} FROM findings WHERE exam_id = ?", (new, exam.id)
            )
    raw.close()
    examples = exam["examples"]
    rng = np.random.default_rng(0)
    arrays = {}
    for name, array in examples.arrays.items():
        each = len(array) == len(examples.arrays["rows"])
        arrays[name] = array[rng.integers(0, len(array), EXAMPLES)] if each else array
    arrays |= {"rows": np.arange(EXAMPLES), "loss": rng.random(EXAMPLES, np.float32)}
    arrays["thumbnails"] = rng.integers(0, 255, (EXAMPLES, 32, 32, 3)).astype(np.uint8)
    large = msgspec.structs.replace(examples, arrays=arrays)
    with open_store(folder) as store:
        store.save(
            msgspec.structs.replace(exam, id="large", findings={**exam.findings, large.instrument: large})
        )
    return exam.id, "large"


def measure(folder: Path, ids: tuple[str, str], repeats: int, browser: str) -> list[tuple[str, list[float]]]:
    """Milliseconds by what was done."""
    import uvicorn
    from playwright.sync_api import sync_playwright

    from microtome.store import open_store
    from microtome.web import address, application, listen

    one, large = ids
    paints = {
        f"list of {EXAMINATIONS:,}": "/",
        "list, last page": f"/?page={EXAMINATIONS // 50}",
        "examination": f"/e/{one}",
        "layers": f"/e/{one}/layers",
        f"grid of {EXAMPLES:,} examples": f"/e/{large}/examples",
        "one example": f"/e/{large}/examples/17",
        "a layer with its units": f"/e/{large}/layers?layer=relu%233",
        "compare two": f"/compare?of={one}&of={large}",
        "compare two groups of two": "/compare?groups=1&a=copy-0001,copy-0002&b=copy-0003,copy-0004",
    }
    acts = {
        "a letter typed into the search": ("/", "type", "filled"),
        "another grade": ("/", "grade", "filled"),
        "a finding opened": (f"/e/{one}", "open", "filled"),
        "a layer chosen": (f"/e/{one}/layers", "layer", "filled"),
        "a unit chosen": (f"/e/{large}/layers?layer=relu%233", "unit", "filled"),
        "the grid scrolled by five screens": (f"/e/{large}/examples", "scroll", "cells"),
        "another order of the grid": (f"/e/{large}/examples", "sort", "filled"),
        "a course scrubbed": (f"/compare?of={one}&of={large}&of={','.join(COPIES)}", "scrub", "now"),
    }
    found: list[tuple[str, list[float]]] = []
    listening = listen("127.0.0.1", 0, "")
    where = address(listening, "127.0.0.1").rstrip("/")
    with open_store(folder) as store, sync_playwright() as play:
        app = application(store)
        app.state.lab.warm()  # as `microtome view` does
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        chromium = play.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        for name, path in paints.items():
            times = []
            for _ in range(repeats):
                page: Any = chromium.new_context(viewport={"width": 1280, "height": 900}).new_page()
                page.goto(where + path)
                paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
                while (at := page.evaluate(paint)) is None:
                    time.sleep(0.01)
                times.append(float(at))
                page.context.close()
            found.append((f"first paint: {name}", times))
        for name, (path, act, holds) in acts.items():
            page = chromium.new_context(viewport={"width": 1280, "height": 900}).new_page()
            page.goto(where + path)
            page.wait_for_load_state("networkidle")
            found.append((name, [float(page.evaluate(WAIT, [act, holds])) for _ in range(repeats)]))
            page.context.close()
        chromium.close()
        server.should_exit = True
        thread.join(5)
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--browser", default=shutil.which("chromium") or "chromium")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        ids = fill(folder)
        size = (folder / "microtome.db").stat().st_size / 1e6
        print(f"{EXAMINATIONS:,} examinations in {size:.0f} MB, {EXAMPLES:,} examples; milliseconds\n")
        print("| | median | worst |\n| --- | ---: | ---: |")
        for name, times in measure(folder, ids, given.repeats, given.browser):
            print(f"| {name} | {statistics.median(times):.0f} | {max(times):.0f} |")


if __name__ == "__main__":
    main()
