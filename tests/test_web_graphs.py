"""Drawings of graphs: what is kept of each against a slow search, the layout, and the pages that show them."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient
from web_lab import examination

from microtome.finding import Finding, Quantity
from microtome.instruments.reliability.examples import Examples
from microtome.laws.subjects import graphs, nodes
from microtome.passes import run_instruments
from microtome.report import graph_drawing
from microtome.signals import graph_pictures
from microtome.store import open_store
from microtome.structure import Structure
from microtome.web import application

HOME = "http://127.0.0.1:7345"


def structure(edges: torch.Tensor, count: int, **changes: Any) -> Structure:
    made: dict[str, Any] = {
        "edge_index": edges, "graph": torch.zeros(count, dtype=torch.long), "graphs": 1,
        "node_ids": torch.arange(count), "labels": torch.arange(count) % 4, "train": None, "x": None, "names": (),
        "per_graph": False, "total": count, "sampled": False, "examples": torch.arange(count),
    }  # fmt: skip
    return Structure(**(made | changes))


def random_edges(count: int, edges: int, seed: int) -> torch.Tensor:
    return torch.randint(0, count, (2, edges), generator=torch.Generator().manual_seed(seed))


def slowly(found: Structure, centre: int) -> tuple[int, list[int], set[tuple[int, int]]]:
    """Nodes within two steps by the rule in the docstring, and the edges between them, one by one."""
    pairs = {tuple(sorted(pair)) for pair in found.edge_index.T.tolist() if pair[0] != pair[1]}
    ids = found.node_ids.tolist()

    def neighbours(node: int) -> list[int]:
        return sorted({b if a == node else a for a, b in pairs if node in (a, b)}, key=lambda v: ids[v])

    first = neighbours(centre)
    met = [centre, *first[: graph_pictures.NEAR]]
    for node in first[: graph_pictures.NEAR]:
        met += neighbours(node)[: graph_pictures.FURTHER]
    met = list(dict.fromkeys(met))
    total = len(met) + max(len(first) - graph_pictures.NEAR, 0)
    chosen = met[: graph_pictures.AROUND]
    between = [
        (i, j)
        for i, a in enumerate(chosen)
        for j, b in enumerate(chosen)
        if i < j and tuple(sorted((a, b))) in pairs
    ]
    return total, chosen, set(between[: graph_pictures.BETWEEN])


@pytest.mark.parametrize(("count", "edges"), [(30, 40), (30, 300), (5, 0), (1, 1), (60, 70)])
def test_surroundings_of_a_node(count: int, edges: int) -> None:
    ids = torch.randperm(count, generator=torch.Generator().manual_seed(3)) + 100
    found = structure(random_edges(count, edges, 0), count, node_ids=ids)
    made = graph_pictures._picture(found, offset=0)
    assert made.shape == (count, graph_pictures.HEAD + graph_pictures.AROUND + 2 * graph_pictures.BETWEEN)
    for centre in range(count):
        drawn = graph_drawing.read(made[centre].numpy())
        assert drawn is not None and drawn.centred
        total, chosen, between = slowly(found, centre)
        assert drawn.kinds == tuple(v % 4 for v in chosen)
        assert (drawn.total, set(drawn.edges)) == (total, between)


def test_surroundings_do_not_depend_on_the_cut() -> None:
    found = structure(random_edges(40, 90, 1), 40)
    whole = graph_pictures._picture(found, offset=0)
    shuffled = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    back = torch.argsort(shuffled)
    moved = structure(
        back[found.edge_index.flip(0)], 40, node_ids=shuffled, labels=found.labels[shuffled],  # type: ignore[index]
        examples=back[torch.tensor([7, 3, 11])],
    )  # fmt: skip
    assert torch.equal(graph_pictures._picture(moved, offset=0), whole[[7, 3, 11]])


@pytest.mark.parametrize("sorted_nodes", [True, False])
def test_whole_graphs(sorted_nodes: bool) -> None:
    sizes, places = [3, 0, 70, 1], []
    graph = torch.repeat_interleave(torch.arange(4), torch.tensor(sizes))
    if not sorted_nodes:
        graph = graph[torch.randperm(len(graph), generator=torch.Generator().manual_seed(0))]
    edges = random_edges(len(graph), 4000, 2)
    x = torch.nn.functional.one_hot(torch.arange(len(graph)) % 5, 5).float()
    x[0] = 0.5
    found = structure(
        edges,
        len(graph),
        graph=graph,
        graphs=4,
        labels=None,
        x=x,
        per_graph=True,
        examples=torch.tensor([2, 0, 3, 1]),
    )
    made = graph_pictures._picture(found, offset=0)
    for row, g in zip(made, [2, 0, 3, 1], strict=True):
        drawn = graph_drawing.read(row.numpy())
        members = (graph == g).nonzero()[:, 0].tolist()
        if not members:
            assert drawn is None
            continue
        chosen = members[: graph_pictures.NODES]
        assert drawn is not None and not drawn.centred and drawn.total == len(members)
        assert drawn.kinds == tuple(-1 if v == 0 else v % 5 for v in chosen)
        pairs = {tuple(sorted(p)) for p in edges.T.tolist() if p[0] != p[1] and set(p) <= set(chosen)}
        inside = {(chosen.index(a), chosen.index(b)) for a, b in pairs}
        assert set(drawn.edges) == set(sorted(inside)[: graph_pictures.EDGES])
        places.append(len(chosen))
    assert places == [48, 3, 1]


def test_rows_that_contradict_themselves_are_no_graph() -> None:
    good = np.array([3, 0, 3, 0, 1, -1, 0, 1, 1, 2, -1, -1])
    drawn = graph_drawing.read(good)
    assert drawn == graph_drawing.Drawn(3, False, (0, 1, -1), ((0, 1), (1, 2)))
    for odd in (
        good[:2],
        good[:-1],
        good.astype(float),
        good[None],
        good * 0,
        -good,
        np.array([3, 0, 99, 1, 1]),
    ):
        assert graph_drawing.read(odd) is None
    ends = good.copy()
    ends[6:] = [0, 9, 2, 2, -7, 1]
    found = graph_drawing.read(ends)
    assert found is not None and found.edges == ()


def test_the_layout_keeps_distances() -> None:
    """A path is drawn as a straight line with equal steps; the centre stays; the same each time."""
    places = graph_drawing.layout(3, ((0, 1), (1, 2)), False)
    steps = np.linalg.norm(np.diff(places, axis=0), axis=1)
    assert np.linalg.norm(places[0] - places[2]) == pytest.approx(steps.sum(), rel=0.05)
    assert steps[0] == pytest.approx(steps[1], rel=0.05)
    star = graph_drawing.layout(5, tuple((0, i) for i in range(1, 5)), True)
    assert star[0].tolist() == [0, 0] and np.linalg.norm(star[1:], axis=1) == pytest.approx(
        np.ones(4), rel=0.1
    )
    again = graph_drawing.layout.__wrapped__(5, tuple((0, i) for i in range(1, 5)), True)
    assert np.array_equal(star, again)
    apart = graph_drawing.layout(4, ((0, 1), (2, 3)), False)  # two parts
    assert np.isfinite(apart).all() and np.linalg.norm(apart[0] - apart[2]) > np.linalg.norm(
        apart[0] - apart[1]
    )
    assert graph_drawing.layout(1, (), True).tolist() == [[0, 0]]


@pytest.mark.parametrize("build", [nodes, graphs])
def test_examples_of_graphs_are_drawn(build: Any, tmp_path: Path) -> None:
    finding = run_instruments(build(), {"reliability/examples": Examples()})["reliability/examples"]
    assert finding.status == "measured" and finding.arrays["graphs"].dtype == np.int32
    with open_store(tmp_path) as store:
        store.save(examination(findings={finding.instrument: finding}))
        client = TestClient(application(store), base_url=HOME)
        grid = client.get("/e/e1/examples").text
        (first, *_) = images = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', grid)
        assert len(images) == len(finding.arrays["rows"])
        tree = ElementTree.fromstring(base64.b64decode(first))
        assert tree.tag == "{http://www.w3.org/2000/svg}svg" and len(base64.b64decode(first)) < 20_000
        page = client.get("/e/e1/examples/worst").text
        (shown,) = re.findall(r'<svg [^>]*class="graph".*?</svg>', page)
        drawn = ElementTree.fromstring(shown)
        assert drawn.attrib["aria-label"].startswith("a node with its" if build is nodes else "a graph:")
        row = int(re.findall(r"<h1>[^<]*?(\d+)", page)[0])
        kept = graph_drawing.read(finding.arrays["graphs"][finding.arrays["rows"].tolist().index(row)])
        assert kept is not None
        circles = drawn.findall(".//{http://www.w3.org/2000/svg}circle")
        assert len(circles) == len(kept.kinds) + (build is nodes)  # the ring of the answer
        assert len(drawn.findall(".//{http://www.w3.org/2000/svg}line")) == len(kept.edges)
        if build is nodes:
            answer = int(finding.arrays["answers"][finding.arrays["rows"].tolist().index(row)])
            rings = [c for c in circles if c.attrib["fill"] == "none"]
            assert [c.attrib["stroke"] for c in rings] == [graph_drawing.colour(answer)]
            label = int(finding.arrays["labels"][finding.arrays["rows"].tolist().index(row)])
            assert kept.kinds[0] == label and "The example is in the middle" in page


# How a colour looks without green, red or blue cones (Machado, Oliveira & Fernandes 2009, severity 1), linear RGB.
SEEN = {
    "all cones": np.eye(3),
    "no green": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "no red": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "no blue": np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]),
}


def lab_colour(shade: str, seen: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of a colour as it is seen."""
    parts = np.array([int(shade[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    f = (xyz @ np.clip(seen @ linear, 0, 1)) / [0.9505, 1, 1.089]
    f = np.where(f > 0.008856, np.cbrt(f), 7.787 * f + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def charts() -> tuple[str, ...]:
    """Colours of the series of a chart."""
    from microtome.report.html import own

    (line,) = re.findall(r"category: \[([^\]]+)\]", own("draw.js"))
    return tuple(re.findall(r"#\w{6}", line))


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize(("colours", "least"), [(graph_drawing.COLOURS, 10), (charts(), 15)])
def test_colours_are_told_apart_by_every_eye(seen: str, colours: tuple[str, ...], least: float) -> None:
    """A difference of 2 or 3 is only just seen side by side; the colours of before had 3."""
    found = np.stack([lab_colour(c, SEEN[seen]) for c in colours])
    apart = np.linalg.norm(found[:, None] - found[None], axis=2)[np.triu_indices(len(colours), 1)]
    assert apart.min() > least


def test_numbers_in_nodes_can_be_read() -> None:
    for shade in graph_drawing.COLOURS:
        light, other = graph_drawing.luminance(shade), 1.0 if graph_drawing.ink(shade) == "#fff" else 0.0
        high, low = max(light, other), min(light, other)
        assert (high + 0.05) / (low + 0.05) > 4.5, shade


def test_damaged_graphs_leave_the_page_whole(tmp_path: Path) -> None:
    a = {
        "rows": np.arange(3),
        "labels": np.arange(3),
        "answers": np.arange(3),
        "graphs": np.full((3, 9), 7, np.int32),
    }
    finding = Finding(
        instrument="reliability/examples", headline="x", quantities={"x": Quantity(value=1.0)}, arrays=a
    )
    with open_store(tmp_path) as store:
        store.save(examination(findings={finding.instrument: finding}))
        client = TestClient(application(store), base_url=HOME)
        assert client.get("/e/e1/examples").status_code == 200
        assert "no picture is kept" in client.get("/e/e1/examples/1").text
