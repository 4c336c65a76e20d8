"""Make the pictures of the lab and of the report for the documentation: ``python docs/screenshots.py``.

Examines the reference network, the same with its smallest weights at zero, and four checkpoints of its training, puts
them into a store of their own, serves it, and photographs every screen with the chromium of this machine.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

IMAGES = Path(__file__).parent / "images"
COURSE = ("accuracy", "calibration", "feature_rank", "activation_statistics", "linear_cka", "vci", "cost")


def pruned(model: nn.Module, share: float) -> nn.Module:
    """A copy with this share of all its weights (matrices and kernels) at zero, the smallest first."""
    made = copy.deepcopy(model)
    weights = [p for p in made.parameters() if p.dim() > 1]
    bound = torch.cat([w.detach().abs().flatten() for w in weights]).quantile(share)
    with torch.no_grad():
        for w in weights:
            w.mul_(w.abs() > bound)
    return made


def blocks() -> tuple[nn.Module, list[Any]]:
    """A graph network trained on four communities, and their graph."""
    from torch_geometric.nn import GCN

    from microtome.data.graph_generators import stochastic_blocks
    from microtome.learn.graph_training import fit_nodes

    torch.manual_seed(0)
    graph = stochastic_blocks(400, 4, degree=4, homophily=0.7, signal=0.6)
    model = GCN(16, 16, 2, 4)
    fit_nodes(model, graph, epochs=60)
    return model, [graph]


def fill(store: str) -> None:
    """Examine, and store."""
    import microtome
    from microtome.reference import reference_subject
    from microtome.store import open_store
    from microtome.trajectory import examine_checkpoints

    model, data = reference_subject()
    others = [reference_subject(seed)[0] for seed in (1, 2)]
    for name, subject, tags, only in (
        ("digits CNN", model, ("baseline",), ()),
        ("digits CNN, 60 % pruned", pruned(model, 0.6), ("pruned",), ()),
        # A few questions are enough for groups of runs.
        *((f"digits CNN, seed {i}", other, ("baseline",), COURSE) for i, other in enumerate(others, 1)),
        *(
            (f"digits CNN, seed {i}, pruned", pruned(o, 0.6), ("pruned",), COURSE)
            for i, o in enumerate(others, 1)
        ),
    ):
        exam = microtome.examine(subject, data, store=store, bounds=(0.0, 1.0), name=name, only=only)
        with open_store(store) as opened:
            for tag in tags:
                opened.tag(exam.id, tag)
    microtome.examine(*blocks(), store=store, name="GCN on communities", only=("examples", "homophily"))
    with tempfile.TemporaryDirectory() as folder:
        # Between random weights and the trained ones, on a straight line: a course with a known beginning and end.
        fresh = copy.deepcopy(model)
        for module in fresh.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        for step in range(0, 101, 20):
            pairs = zip(fresh.state_dict().items(), model.state_dict().values(), strict=True)
            mixed = {k: torch.lerp(a.double(), b.double(), step / 100).to(a.dtype) for (k, a), b in pairs}
            save_file(mixed, Path(folder) / f"step_{step}.safetensors")
        options = {"bounds": (0.0, 1.0), "name": "digits CNN, from random to trained"}
        examine_checkpoints(model, data, folder, store=store, only=COURSE, subject_options=options)


def wide_layer(store: Any, exam: str) -> str:
    """The last activation of which the examples that excite its units are kept, as it stands in an address."""
    from urllib.parse import quote

    keys = [k for f in store.read(exam).exam for k in f.arrays if k.startswith("most exciting/")]
    return quote(
        next((k.split("/", 1)[1] for k in reversed(keys) if "relu" in k), keys[-1].split("/", 1)[1]), safe=""
    )


def wrong_among_others(store: Any, exam: str) -> int:
    """The wrong example with the most neighbours of those whose drawing is no crowd."""
    found = next(f for f in store.read(exam).exam if "graphs" in f.arrays)
    a = store.arrays_of(exam, found)
    nodes = (a["graphs"][:, 3 : 3 + int(a["graphs"][0, 2])] > -2).sum(1)
    return int(a["rows"][((a["labels"] != a["answers"]) * (nodes < 15) * nodes).argmax()])


def photograph(store: str, folder: Path, only: Sequence[str], browser: str) -> None:
    """Serve the store and take a picture of every screen."""
    import uvicorn
    from playwright.sync_api import sync_playwright

    from microtome.atlas import entries
    from microtome.report import write_report
    from microtome.store import open_store
    from microtome.web import address, application, listen

    listening = listen("127.0.0.1", 0, "")
    where = address(listening, "127.0.0.1").rstrip("/")
    with open_store(store) as opened, sync_playwright() as play:
        server = uvicorn.Server(uvicorn.Config(application(opened, atlas=entries), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        by_name = {entry.subject: entry.id for entry in opened.list()}
        first, second = by_name["digits CNN"], by_name["digits CNN, 60 % pruned"]
        graph, layer = by_name["GCN on communities"], wide_layer(opened, first)
        course = by_name["digits CNN, from random to trained"]
        shots = {
            "examinations": "/",
            "examination": f"/e/{first}",
            "layers": f"/e/{second}/layers",
            "units": f"/e/{first}/layers?layer={layer}#units-h",
            "examples": f"/e/{second}/examples",
            "example": f"/e/{second}/examples/worst",
            "counterfactual": f"/e/{first}/examples/worst#cf-h",
            "graph": f"/e/{graph}/examples/{wrong_among_others(opened, graph)}",
            "compare": f"/compare?of={first}&of={second}",
            "groups": "/compare?groups=1&a_tag=baseline&b_tag=pruned",
            "training": f"/compare?of={course}",
            "atlas": "/atlas",
        }
        chromium = play.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        for name, path in shots.items():
            if only and name not in only:
                continue
            for suffix, scheme, width in (
                ("", "light", 1280),
                ("-dark", "dark", 1280),
                ("-narrow", "light", 400),
            ):
                context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
                page = context.new_page()
                page.on("console", lambda message: print(message.type, message.text, file=sys.stderr))
                page.goto(where + path)
                page.wait_for_load_state("networkidle")
                if name == "atlas":
                    page.wait_for_selector("table.papers", timeout=60_000)
                page.wait_for_timeout(600)
                # Where the store of the pictures happens to lie is nobody's concern.
                page.evaluate("document.querySelector('.where').textContent = 'results/microtome.db'")
                wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
                if wide > 0:
                    print(f"{name}{suffix} is wider than the window by {wide} px", file=sys.stderr)
                if not suffix or only or "all" in sys.argv:
                    page.screenshot(path=folder / f"view-{name}{suffix}.png")
                context.close()
        if not only or "report" in only:
            with tempfile.TemporaryDirectory() as apart:
                page = chromium.new_page(viewport={"width": 1200, "height": 1300})
                page.goto(write_report(opened.load(first), apart).as_uri())
                page.wait_for_timeout(600)
                page.screenshot(path=folder / "report.png")
        chromium.close()
        server.should_exit = True
        thread.join(5)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", help="A store that has been filled before; otherwise one is made.")
    parser.add_argument("--out", type=Path, default=IMAGES)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--browser", default="/usr/bin/chromium")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        where = given.store or made
        if not given.store or not (Path(where) / "microtome.db").exists():
            fill(where)
        given.out.mkdir(parents=True, exist_ok=True)
        photograph(where, given.out, given.only, given.browser)
