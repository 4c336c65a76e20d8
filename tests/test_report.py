"""The report: whole, escaped, small, and readable by a person, a screen reader and a program."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from microtome import figures
from microtome import report as report_package
from microtome.errors import UsageError
from microtome.figures import figure_rows
from microtome.finding import (
    Coverage,
    Examination,
    Figure,
    Finding,
    Quantity,
    Table,
    Threshold,
    decode_examination,
    encode_json,
    refused,
)
from microtome.report import html as report_module
from microtome.report import notebook_html, report_html, write_report
from microtome.report.described import described
from microtome.report.text import number_text, table_text, tool_error

EVIL = "</script><script>alert('x')</script><img src=x onerror=alert(1)> & \"quoted\" \u2028"


def examination(**changes: object) -> Examination:
    rng = np.random.default_rng(0)
    worse = Threshold(quantity="ece", watch=0.05, alarm=0.15, source="a stated source")
    findings = {
        "reliability/calibration": Finding(
            instrument="reliability/calibration",
            headline="ece",
            question="Can its confidence be believed?",
            how_to_read="0 is perfect.",
            summary="It is overconfident.",
            quantities={
                "ece": Quantity(value=0.31, low=0.29, high=0.33, how="bootstrap", better="lower"),
                "temperature": Quantity(value=1.83, unit="K"),
            },
            grade="alarm",
            threshold=worse,
            caveats=("15 bins.",),
            figures={
                "diagram": figures.line(
                    "Reliability", figures.rows(c=[0.1, 0.9], a=[0.2, 0.6]), x="c", y="a", diagonal=True
                ),
                "matrix": figures.heatmap("Confusion", np.eye(3), caption="Rows are the truth."),
            },
            tables={"by class": Table(columns=("class", "ece"), rows=(("zero", 0.25), ("one", None)))},
            papers=("deep-grokking", "a-paper-nobody-wrote"),
            options={"bins": 15},
            coverage=Coverage(rows=100, rows_total=1797, layers=3, layers_total=4),
            arrays={"samples": np.zeros(4), "rows": np.arange(4)},
            seconds=1.25,
            rounds=2,
        ),
        "explain/gradient": Finding(
            instrument="explain/gradient",
            headline="score",
            question="Which pixels decide?",
            summary="The strokes.",
            quantities={"score": Quantity(value=0.7)},
            figures={"maps": figures.image_grid("Maps", [[rng.random((8, 8)), rng.random((8, 8))]])},
            grade="good",
        ),
        "compress/size": Finding(
            instrument="compress/size",
            headline="parameters",
            question="How large is it?",
            quantities={"parameters": Quantity(value=61706, how="exact")},
        ),
        "graphs/smooth": Finding(instrument="graphs/smooth", status="refused", reason="there is no graph"),
        "dynamics/noise": Finding(instrument="dynamics/noise", status="failed", reason="ValueError: boom"),
    }
    made: dict[str, object] = {
        "id": "3f2a91c0",
        "created": "2026-11-21T10:00:00Z",
        "subject": {
            "name": "digits-cnn",
            "task": "classification",
            "parameters": 61706,
            "examples": 1797,
            "inferred": ["task: classification, from integer labels"],
            "source": {"model": "nets:build"},
        },
        "findings": findings,
        "seed": 7,
        "command": "microtome examine nets:build --seed 7",
        "versions": {"microtome": "0.1.0", "torch": "2.13.0"},
        "plan": {
            "passes": [{"pass": 1, "signals": ["logits", "loss"]}, {"pass": 2, "kind": "backward"}],
            "n": 3,
        },
        "calibration": {
            "reliability/calibration": [
                {"specimen": "planted", "quantity": "ece", "reading": 0.199, "truth": 0.2, "error": -0.001}
                | {"tolerance": 0.01, "passed": True}
            ]
        },
    }
    return Examination(**(made | changes))  # type: ignore[arg-type]


VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """The document as a reader's program sees it."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.stack: list[str] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.headings: list[tuple[int, str]] = []
        self.feed(text)
        self.close()
        assert self.stack == [], f"unclosed: {self.stack}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.stack.append(tag)
        if tag == "script":
            self.scripts.append("")
        if re.fullmatch("h[1-6]", tag):
            self.headings.append((int(tag[1]), ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack[-1] == tag, f"</{tag}> closes {self.stack[-3:]}"
        self.stack.pop()

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] == "script":
            self.scripts[-1] += data
        elif not self.stack or self.stack[-1] != "style":
            self.words.append(data)
            if self.headings and any(re.fullmatch("h[1-6]", tag) for tag in self.stack):
                self.headings[-1] = (self.headings[-1][0], self.headings[-1][1] + data)

    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_everything_is_in_it() -> None:
    exam = examination()
    page = Page(report_html(exam))
    text = page.text()
    for finding in exam:
        assert finding.instrument in text
        assert finding.question in text
        assert finding.summary in text
    for words in (
        *("0.31", "0.29 to 0.33", "bootstrap", "lower is better", "0 is perfect.", "15 bins."),
        *("watch above 0.05, alarm above 0.15 (a stated source)", "temperature", "1.83", "K"),
        *("100 of 1797 examples, 3 of 4 layers", "1.25 s in 2 rounds", "bins = 15", "deep-grokking"),
        *("a-paper-nobody-wrote", "planted", "off by at most 0.5%", "there is no graph", "ValueError: boom"),
        *(
            "microtome examine nets:build --seed 7",
            "torch 2.13.0",
            "task: classification, from integer labels",
        ),
        *("nets:build", "61,706", "Rows are the truth.", "backward", "logits, loss", "seed", "7"),
    ):
        assert words in text, words


def test_worries_come_first_in_order() -> None:
    page = report_html(examination())
    worry, alarm, failed, table = (
        page.index(mark) for mark in ('id="worry"', ">alarm</span>", ">failed</span>", 'id="all"')
    )
    assert worry < alarm < failed < table


def test_no_worry_is_said_explicitly() -> None:
    calm = examination(
        findings={"a/b": Finding(instrument="a/b", headline="x", quantities={"x": Quantity(value=1)})}
    )
    text = Page(report_html(calm)).text()
    assert "no finding here has a stated threshold" in text
    assert "0 of 1 finding have a stated threshold" in text
    graded = Finding(instrument="a/b", headline="x", quantities={"x": Quantity(value=1)}, grade="good")
    text = Page(report_html(examination(findings={"a/b": graded}))).text()
    assert "Nothing does, among what was measured" in text


def test_an_instrument_that_reads_wrong_is_a_worry() -> None:
    exam = examination()
    exam.calibration["explain/gradient"] = [
        {"specimen": "linear", "reading": 2.0, "truth": 1.0, "passed": False}
    ]
    text = Page(report_html(exam)).text()
    assert "instrument reads wrong" in text and "This instrument read linear wrong" in text


def test_the_examination_can_be_read_back() -> None:
    exam = examination()
    (data,) = [s for s, a in zip_scripts(report_html(exam)) if a.get("type") == "application/json"]
    again = decode_examination(data.encode())
    assert encode_json(again) == encode_json(exam)


def zip_scripts(text: str) -> list[tuple[str, dict[str, str]]]:
    page = Page(text)
    return list(zip(page.scripts, page.all("script"), strict=True))


def evil_examination() -> Examination:
    exam = examination()
    evil = Finding(
        instrument=f"evil/{EVIL}",
        headline=EVIL,
        question=EVIL,
        how_to_read=EVIL,
        summary=EVIL,
        quantities={
            EVIL: Quantity(value=1, unit=EVIL, how=EVIL),
            "other" + EVIL: Quantity(value=2, unit=EVIL),
        },
        tables={EVIL: Table(columns=(EVIL,), rows=((EVIL,),), caption=EVIL)},
        figures={
            EVIL: Figure(title=EVIL, caption=EVIL, spec={"data": {"values": [{EVIL: EVIL}]}, "mark": "bar"}),
            "pictures": Figure(
                title=EVIL,
                spec={
                    "data": {
                        "values": [{"row": EVIL, "column": EVIL, "image": 'data:image/png;base64,"><b>'}]
                    }
                },
            ),
        },
        threshold=Threshold(quantity=EVIL, watch=1, alarm=2, source=EVIL),
        grade="alarm",
        caveats=(EVIL,),
        papers=(EVIL,),
        options={EVIL: EVIL},
        arrays={EVIL: np.zeros(1)},
    )
    exam.findings[evil.instrument] = evil
    exam.findings["evil/refused"] = refused(EVIL)
    exam.subject |= {"name": EVIL, EVIL: EVIL, "inferred": [EVIL], "deep": {EVIL: [{EVIL: EVIL}]}}
    exam.plan |= {EVIL: [{EVIL: {EVIL: EVIL}}]}
    exam.versions[EVIL] = EVIL
    exam.calibration[evil.instrument] = [{EVIL: EVIL, "specimen": EVIL, "passed": False}]
    exam.command = EVIL
    return exam


def test_text_cannot_become_markup() -> None:
    exam = evil_examination()
    text = report_html(exam)
    page = Page(text)
    assert len(page.all("script")) == 3  # the data, the library, the drawing
    assert all("src" not in attributes for attributes in page.all("script"))
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    assert "alert('x')" in page.text()
    (data,) = [s for s, a in zip_scripts(text) if a.get("type") == "application/json"]
    assert "<" not in data and "\u2028" not in data
    assert json.loads(data)["subject"]["name"] == EVIL
    assert encode_json(decode_examination(data.encode())) == encode_json(exam)
    light = Page(notebook_html(exam))
    assert not light.all("script") and not light.all("img")


def test_nothing_is_fetched_and_only_its_own_scripts_run() -> None:
    text = report_html(evil_examination())
    page = Page(text)
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:image/png")), (name, value)
    assert not page.all("link") and not page.all("iframe") and not page.all("base")
    assert "@import" not in text.split("</style>")[0] and "url(" not in text.split("</style>")[0]
    (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe-eval" not in policy
    scripts = policy.split("script-src")[1].split(";")[0]
    assert "unsafe-inline" not in scripts
    run = [s for s, a in zip_scripts(text) if "type" not in a]
    assert [report_module.script_hash(script) for script in run] == re.findall(r"'(sha256-[^']+)'", scripts)


def test_it_is_accessible() -> None:
    page = Page(report_html(examination()))
    assert page.all("html")[0]["lang"] == "en"
    for landmark in ("header", "nav", "main", "footer"):
        assert len(page.all(landmark)) == 1, landmark
    assert [level for level, _ in page.headings].count(1) == 1
    levels = [level for level, _ in page.headings]
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels
    assert all(heading.strip() for _, heading in page.headings)
    assert all(image.get("alt") for image in page.all("img"))
    drawn = [a for _, a in page.tags if "data-figure" in a]
    assert len(drawn) == 2 and all(a["role"] == "img" and a["aria-label"] for a in drawn)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.all("a")} <= set(ids)
    for _, attributes in page.tags:
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids


def test_numbers_of_figures_show_without_a_script() -> None:
    text = report_html(examination())
    page = Page(text)
    assert "<noscript>" in text and "Numbers of this figure" in page.text()
    assert len(page.all("img")) == 2
    assert "0.6" in page.text()


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_inks_stand_out_in_light_and_dark() -> None:
    style = report_module.own("report.css")
    schemes = re.findall(r":root \{(.*?)\}", style, re.S)[:2]
    for scheme in schemes:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", scheme))
        pairs = [(ink, ground) for ink in ("ink", "soft", "link") for ground in ("paper", "card")]
        pairs += [(grade, f"{grade}-bg") for grade in ("good", "watch", "alarm")]
        for ink, ground in pairs:
            dark, light = sorted((luminance(colours[ink]), luminance(colours[ground])))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


def test_a_report_without_figures_carries_no_library() -> None:
    plain = examination(findings={"a/b": refused("no")})
    text = report_html(plain)
    assert len(text) < 40_000
    assert "script-src 'none'" in str(Page(text).all("meta"))
    assert "Nothing was measured." in text


def test_a_large_examination_is_kept_below_the_cap() -> None:
    rng = np.random.default_rng(0)
    many = {}
    for i in range(40):
        wide = [{"x": float(x), "y": float(y)} for x, y in rng.normal(size=(4000, 2))]
        spec = {"data": {"values": wide}, "mark": "point", "encoding": {}}
        maps = figures.image_grid("maps", [[rng.random((64, 64))] * 8] * 4)
        many[f"r/i{i}"] = Finding(
            instrument=f"r/i{i}",
            headline="x",
            quantities={"x": Quantity(value=i)},
            figures={"points": Figure(title="points", spec=spec), "maps": maps},
        )
    exam = examination(findings=many)
    before = encode_json(exam)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = report_html(exam)
    assert len(text.encode()) <= report_module.SIZE_CAP
    assert encode_json(exam) == before  # the examination itself is left alone
    said = Page(text).text()
    assert "To keep this file below 5 MB" in said
    assert "points are drawn, to keep the file small" in said
    assert all(f"r/i{i}" in said for i in range(40))


def test_a_text_too_large_is_warned_of() -> None:
    rows = tuple((f"{'x' * 200}{i}", i) for i in range(30_000))
    table = Table(columns=("a", "b"), rows=rows)
    exam = examination(findings={"a/b": Finding(instrument="a/b", tables={"t": table})})
    with pytest.warns(report_module.ReportSizeWarning, match="MB"):
        text = report_html(exam)
    assert "300 of 30000 rows" in text


def test_writing(tmp_path: Path) -> None:
    exam = examination()
    assert write_report(exam, tmp_path) == tmp_path / "3f2a91c0.html"
    path = write_report(exam, str(tmp_path / "new" / "out.html"))
    assert path.read_text(encoding="utf-8") == report_html(exam)
    assert [p.name for p in path.parent.iterdir()] == ["out.html"]
    assert exam.report(str(path)) == str(path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="MT150 the report cannot be written"):
        write_report(exam, tmp_path / "file" / "out.html")


def test_findings_without_anything_are_shown() -> None:
    bare = examination(
        subject={}, command="", versions={}, plan={}, findings={"solo": Finding(), "a/b": Finding()}
    )
    text = Page(report_html(bare)).text()
    assert "unnamed subject" in text and "solo" in text
    assert "solo" in table_text(bare) and "solo" in notebook_html(bare)
    empty = examination(findings={})
    assert "Nothing was measured." in report_html(empty) and "Nothing was measured." in table_text(empty)


def test_a_status_that_is_not_complete_is_said() -> None:
    text = Page(report_html(examination(status="stopped"))).text()
    assert "This examination is stopped" in text


def test_notebook_is_light_and_static() -> None:
    exam = examination()
    text = notebook_html(exam)
    assert exam._repr_html_() == text
    assert "<script" not in text and len(text) < 10_000
    assert "0.31 [0.29, 0.33]" in text and "1 failed, 1 refused" in text
    crowd = {f"r/i{i}": Finding(instrument=f"r/i{i}", summary="s" * 500) for i in range(3000)}
    large = notebook_html(examination(findings=crowd))
    assert len(large) < 100_000
    assert "more measured" in large
    Page(large)


def test_table_text() -> None:
    exam = examination()
    text = table_text(exam)
    assert exam.table() == text
    lines = text.splitlines()
    assert lines[0].startswith("digits-cnn | classification | 61,706 parameters | 1,797 examples | seed 7")
    (row,) = [line for line in lines if "calibration" in line]
    assert row.split() == ["calibration", "0.31", "[0.29,", "0.33]", "0.5%", "ALARM"]
    assert lines.index("failed (1)") < lines.index("refused (1)")
    assert any("graphs/smooth" in line and "there is no graph" in line for line in lines)


@pytest.mark.parametrize(
    ("readings", "said"),
    [
        ([], "-"),
        ([{"error": 0.0, "truth": 1.0, "passed": True}], "0%"),
        ([{"error": -0.02, "truth": 2.0, "passed": True}], "1%"),
        ([{"error": 0.004, "truth": 0.0, "passed": True}], "0.004"),
        ([{"error": 0.0, "truth": 0.0, "passed": True}], "0%"),
        (
            [{"error": 0.0, "truth": 1.0, "passed": True}, {"error": 1.0, "truth": 1.0, "passed": False}],
            "reads wrong",
        ),
        ([{"specimen": "only a name"}], "0%"),
    ],
)
def test_tool_error(readings: list[dict[str, object]], said: str) -> None:
    assert tool_error(readings) == said


def test_vendored_files_are_those_written_down() -> None:
    vendor = Path(report_package.__file__).parent / "vendor"
    readme = (vendor / "README.md").read_text()
    for name, package, version, digest in re.findall(
        r"\| `([\w.-]+)` \| ([\w-]+) \| ([\d.]+) \| `([0-9a-f]{64})` \|", readme
    ):
        data = (vendor / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest
        assert version in data.decode() or package == "vega-embed"
        assert "Redistribution" in (vendor / f"{package}.LICENSE").read_text()
        assert "Redistribution" in report_module.library()
    assert len(list(vendor.glob("*.js"))) == 3


def test_thinned_figures_keep_their_ends() -> None:
    rows = [{"x": i} for i in range(1000)]
    figure = Figure(title="f", spec={"data": {"values": rows}, "mark": "point"})
    kept = figure_rows(report_module._thinner(figure, 10_000, 1_000).spec)
    assert (kept[0]["x"], kept[-1]["x"], len(kept)) == (0, 999, 100)


def test_maps_from_blue_to_red_are_told_from_pictures() -> None:
    """The page turns them on a dark ground, and a photograph must not become a negative."""
    rng = np.random.default_rng(0)
    maps, photograph = rng.normal(size=(8, 8)), rng.random((3, 8, 8))
    made = {
        "maps": figures.image_grid("Maps", [[photograph, maps, maps[None]]], diverging=True),
        "plain": figures.image_grid("Plain", [[maps]], limits=(-1, 1)),
    }
    found = Finding(instrument="a/b", headline="x", quantities={"x": Quantity(value=1)}, figures=made)
    page = Page(report_html(examination(findings={"a/b": found})))
    assert [image.get("class", "") for image in page.all("img")] == ["", "signed", "signed", ""]
    assert page.text().count("Blue is below 0, red above") == 1
    figure_rows(made["maps"].spec)[1]["signed"] = EVIL
    page = Page(report_html(examination(findings={"a/b": found})))
    assert [image.get("class", "") for image in page.all("img")] == ["", "", "signed", ""]


def test_the_questions_are_answered_in_one_file() -> None:
    """What is confused, whether probabilities can be trusted, what is wasteful, and why its mistakes are wrong."""
    from web_lab import examination as examined

    exam = examined()
    page = Page(report_html(exam))
    text = page.text()
    for said in (
        "13 mistakes: 2 taken for 1 (9×)", "Confidences are off by 0.31.", "fc: 90% of its 800 weights can go alone",
        "Surest and wrong: 7 (1 taken for 2), 17 (2 taken for 0)", "microtome compare OTHER e1",
    ):  # fmt: skip
        assert said in text, said
    a = exam.findings["reliability/examples"].arrays
    wrong = np.flatnonzero(a["labels"] != a["answers"])
    worst = wrong[np.argsort(-a["loss"][wrong], kind="stable")][: report_module.MISTAKES]
    told = [h for level, h in page.headings if h.startswith("Example ")]
    assert told == [f"Example {i}: labelled {a['labels'][i]}, answered {a['answers'][i]}" for i in worst]
    assert "of label" in text and "for the answer instead of the label" in text
    links = {link["href"][1:] for link in page.all("a") if link["href"].startswith("#")}
    ids = [tag["id"] for _, tag in page.tags if "id" in tag]
    assert links <= set(ids) and len(ids) == len(set(ids))
    assert all(image["alt"] for image in page.all("img"))


def test_mistakes_need_the_arrays_and_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    from web_lab import examination as examined

    exam = examined()
    bare = decode_examination(encode_json(exam))  # arrays by type and shape alone
    assert list(report_module.mistakes_of(bare)) == []
    assert "Its surest mistakes" not in report_html(bare)
    monkeypatch.setattr(report_module, "MISTAKES_SIZE", 6000)
    assert 0 < len(list(report_module.mistakes_of(exam))) < report_module.MISTAKES
    a = exam.findings["reliability/examples"].arrays
    for name, odd in {"neighbours": np.full((300, 5), 10**12), "loss": np.full(300, np.nan)}.items():
        a[name] = odd
    assert Page(report_html(exam)).stack == []


def test_a_chart_says_what_it_shows() -> None:
    data = figures.rows(step=[0, 1, 2], loss=[2.0, 0.5, None], way=["a", "b", "a"])[:2]
    charts = {
        "loss (nat) against step, colours by way; from 0.5 to 2.": figures.line(
            "L", data, x="step", y="loss", series="way", y_unit="nat", diagonal=True
        ),
        "loss of each way; from 0.5 to 2.": figures.bars("B", data, category="way", value="loss"),
        "loss against step; from 0.5 to 2.": figures.scatter("S", data, x="step", y="loss"),
        "Number of examples by value; from 0 to 4.": figures.histogram("H", [3, 4], [0, 2, 4]),
        "value: rows are true, columns said; from 0 to 1.": figures.heatmap(
            "M", np.eye(2), row_title="true", column_title="said"
        ),
    }
    for said, figure in charts.items():
        assert described(figure.spec, figure_rows(figure.spec)) == said
    for odd in (
        {},
        {"layer": 3},
        {"layer": [7]},
        {"mark": "bar", "encoding": {"x": 1, "y": []}},
        {"mark": {}},
    ):
        assert described(odd, []) == ""
    plain = figures.scatter("S", data, x="step", y="loss", caption="Below: better.")
    found = Finding(
        instrument="a/b", headline="x", quantities={"x": Quantity(value=1)},
        figures={"plain": plain, "bare": charts["loss against step; from 0.5 to 2."]},
    )  # fmt: skip
    page = Page(report_html(examination(findings={"a/b": found})))
    labels = [tag["aria-label"] for tag in page.all("div") if tag.get("role") == "img"]
    assert labels[0] == "S. Below: better. loss against step; from 0.5 to 2."
    assert page.text().count("Loss against step; from 0.5 to 2.") == 1  # written where nobody wrote another


def test_long_numbers_are_grouped() -> None:
    assert [number_text(v) for v in (61706, -1363200.0, 9999, 0.5, 1.5e7)] == [
        "61,706", "-1,363,200", "9999", "0.5", "1.50e+07",
    ]  # fmt: skip
    assert "61,706" in Page(report_html(examination())).text()
