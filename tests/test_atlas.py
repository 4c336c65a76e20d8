"""The atlas shows every paper, only what is recorded, and no text of it can run."""

from __future__ import annotations

import json
from dataclasses import replace

import msgspec
import pytest

from microtome.atlas import Entry, entries, write
from microtome.cli.main import run as command
from microtome.errors import UsageError
from microtome.papers import papers
from microtome.report.atlas import page, pages
from microtome.study import records


@pytest.fixture(scope="module")
def everything():
    return entries()


def test_every_paper_has_a_page_and_the_verdicts_are_those_recorded(everything, tmp_path):
    start = write(tmp_path / "atlas")
    assert start == tmp_path / "atlas" / "index.html"
    facts = {each["slug"]: each for each in json.loads((tmp_path / "atlas" / "atlas.json").read_text())}
    assert set(facts) == {each.slug for each in papers()}
    kept = records()
    assert {slug: each["verdict"] for slug, each in facts.items() if each["verdict"]} == {
        slug: each["verdict"] for slug, each in kept.items()
    }
    for slug in facts:
        assert (tmp_path / "atlas" / f"{slug}.html").is_file()
    shown = (tmp_path / "atlas" / "convolution-arithmetic.html").read_text()
    assert kept["convolution-arithmetic"]["command"] in shown
    write(tmp_path / "atlas")  # written anew over itself


def test_a_planned_paper_says_so(everything):
    planned = next(each for each in everything if each.standing.state == "planned")
    assert "Nothing of this paper runs here yet" in page(planned, {})


def test_what_relates_is_linked_from_both_sides(everything):
    for each in everything:
        for other, (how, _) in each.relates.items():
            back = next(e for e in everything if e.standing.paper.slug == other)
            assert how.strip() and each.standing.paper.slug in back.relates


def test_no_text_can_run(everything):
    known = next(each for each in everything if each.record)
    bad = "</script><script>alert(1)</script>"
    record = {
        **known.record,
        "decided_by": bad,
        "numbers": {bad: 1.0},
        "conditions": [bad],
        "figure": {"title": bad, "spec": {"data": {"values": [{"a": bad}]}, "mark": "point"}, "caption": bad},
    }
    standing = msgspec.structs.replace(
        known.standing, paper=msgspec.structs.replace(known.standing.paper, name=bad, title=bad)
    )
    made = page(replace(known, record=record, standing=standing), {})
    assert "<script>alert" not in made
    index = dict(pages([Entry(standing=standing, record=record)]))["index.html"]
    assert "<script>alert" not in index


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UsageError, match="MT151 the folder holds something that is no atlas"):
        write(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_the_command(tmp_path, capsys):
    assert command(["atlas", "--out", str(tmp_path / "a")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "a" / "index.html")
    assert command(["atlas", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(papers())
