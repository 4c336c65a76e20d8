"""The command line: what it prints where, and the status it leaves with."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from microtome.cli import conditions
from microtome.cli.main import run
from microtome.cli.progress import Bar, Lines, duration, finding_line, for_terminal
from microtome.cli.request import read_options, read_value
from microtome.cli.subjects import input_bounds
from microtome.errors import UsageError
from microtome.finding import Examination, Finding, Quantity

NAMES = ("reliability/accuracy", "reliability/calibration", "security/pgd")
SOURCE = Path(__file__).parent.parent / "src"


def a_finding(name: str, value: float = 0.5, **changes: Any) -> Finding:
    quantities = {
        "ece": Quantity(value=value, low=value - 0.1, high=value + 0.1),
        "top 5": Quantity(value=0.99),
    }
    return Finding(instrument=name, headline="ece", quantities=quantities, **changes)


def an_exam(*findings: Finding, status: Any = "complete", **changes: Any) -> Examination:
    return Examination(
        id="20260101-000000-aaaa",
        created="2026-01-01T00:00:00+00:00",
        subject={"name": "net", "task": "classification", "source": {"target": "nets:build"}},
        findings={f.instrument: f for f in findings},
        status=status,
        **changes,
    )


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of the user's is read or written."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("MICROTOME_STORE", raising=False)
    monkeypatch.delenv("MICROTOME_DEBUG", raising=False)
    before = list(sys.path)
    yield
    sys.path[:] = before


def microtome(*argv: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the program as a user would, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "microtome", *argv],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "COLUMNS": "100", **env},
        timeout=300,
        check=False,
    )


# ---------------------------------------------------------------------------------------------- the program


@pytest.mark.parametrize(
    "argv", [["--help"], [], ["examine", "--help"], ["--version"], ["list", "instruments"]]
)
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    code = (
        "import sys; from microtome.cli.main import run; status = run(sys.argv[1:]);"
        "heavy = {'torch', 'scipy', 'numpy', 'sklearn', 'sqlalchemy'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *argv],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_help_names_every_verb() -> None:
    done = microtome("--help")
    assert done.returncode == 0
    for verb in (
        "examine",
        "plan",
        "compare",
        "calibrate",
        "report",
        "list",
        "show",
        "papers",
        "convert",
        "doctor",
    ):
        assert f" {verb} " in done.stdout
    assert "\x1b" not in done.stdout  # no colours into a pipe


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["examin"], ("no verb 'examin'", "did you mean 'examine'?")),
        (["zzz"], ("no verb 'zzz'", "verbs: examine, plan")),
        (["examine", "--onyl", "x"], ("--onyl", "Did you mean --only", "microtome examine --help")),
        (["examine", "--seed", "many"], ("--seed", "many")),
        (["examine", "--fail-on", "doom"], ("--fail-on", "watch")),
        (["compare", "one"], ("requires an argument",)),
        (["examine", "--only", "reliability/accurcy"], ("MT126", "did you mean 'reliability/accuracy'")),
        (["examine", "--fail-if", "accuracy >"], ("MT112", "expected a number")),
        (["examine", "--fail-if", "acuracy > 1"], ("MT113", "did you mean", "reliability/accuracy")),
        (["examine", "--report", "no/such/folder/out.html"], ("MT118", "does not exist")),
        (["examine", "--weights", "w.pt"], ("MT116", "needs a network")),
        (["examine", "nets:build"], ("MT116", "--data")),
        (["examine", "nets:build", "--resume", "x"], ("MT117", "--resume")),
        (["examine", "--bounds", "1,0"], ("MT115", "--bounds")),
        (["show", "nothing"], ("no examination 'nothing'",)),
        (["examine", "--resume", "nothing"], ("no examination 'nothing'",)),
        (["papers", "--room", "securty"], ("MT115", "did you mean 'security'")),
        (["convert", "absent.pt", "out.safetensors"], ("MT100", "does not exist")),
    ],
)
def test_a_wrong_request_gets_one_sentence_and_two(
    argv: list[str], parts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = [line for line in err.splitlines() if not line.startswith("no network was named")]
    assert line.startswith("microtome: MT") or line.startswith("microtome: ")
    assert all(part in line for part in parts), line


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(UsageError):
        run(["convert", "absent.pt", "out.safetensors", "--debug"])


def test_a_fault_of_ours_does_not_look_like_a_failed_threshold(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("microtome.registry.instrument_names", broken)
    assert run(["list", "instruments"]) == 70
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = f"'{sys.executable}' -m microtome papers --json | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "["
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    assert done.returncode == 0


# ---------------------------------------------------------------------------------------------- conditions


@pytest.mark.parametrize(
    ("text", "fails"),
    [
        ("reliability/calibration > 0.05", True),
        ("calibration > .5", False),
        ("calibration>=.5", True),
        ("calibration.ece == 5e-1", True),
        ("calibration != 0.5", False),
        ('calibration."top 5" < 1', True),
        ("calibration < 0.1 or accuracy < 0.9", True),
        ("calibration < 0.1 and accuracy < 0.9", False),
        ("accuracy < 1 or accuracy < 0 and calibration < 0", True),  # and binds closer
        ("(accuracy < 1 or accuracy < 0) and calibration < 0", False),
        ("accuracy > -1", True),
    ],
)
def test_conditions(text: str, fails: bool) -> None:
    exam = an_exam(a_finding("reliability/accuracy", 0.8), a_finding("reliability/calibration"))
    verdict = conditions.check(conditions.parse(text), exam)
    assert verdict.failed is fails
    assert bool(verdict.reasons) is fails


def test_a_verdict_says_what_was_read() -> None:
    verdict = conditions.check(conditions.parse("pgd < 0.6"), an_exam(a_finding("security/pgd")))
    assert verdict.reasons == ("pgd < 0.6: ece is 0.5 [0.4, 0.6]",)


@pytest.mark.parametrize("status", ["refused", "failed", "missing"])
@pytest.mark.parametrize(
    "text", ["pgd > 0.9", "pgd > 0.9 and accuracy > 0.9", "accuracy > 0.9 and pgd > 0.9"]
)
def test_what_could_not_be_measured_fails(status: Any, text: str) -> None:
    exam = an_exam(
        a_finding("reliability/accuracy"),
        Finding(instrument="security/pgd", status=status, reason="no images"),
    )
    verdict = conditions.check(conditions.parse(text), exam)
    assert verdict.failed
    assert f"not measured, {status} (no images)" in verdict.reasons[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "accuracy",
        "> 1",
        "accuracy > x",
        "accuracy > 1 and",
        "(accuracy > 1",
        "accuracy > 1)",
        "a > 1 b > 2",
        "__import__('os') > 1",
        "a = 1",
        "a > 1/2",
        "a > 1 or or b > 2",
        "and > 1",
        "a.b.c > 1",
        "1 < a",
    ],
)
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="MT112"):
        conditions.parse(text)


def test_unknown_names_in_conditions_are_told() -> None:
    exam = an_exam(a_finding("reliability/accuracy"), a_finding("security/accuracy"))
    with pytest.raises(UsageError, match=r"MT114.*did you mean 'ece'"):
        conditions.check(conditions.parse("reliability/accuracy.ec > 1"), exam)
    with pytest.raises(UsageError, match="several instruments are called 'accuracy'"):
        conditions.full_name("accuracy", exam.findings)


# ---------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("20", 20),
        ("0.5", 0.5),
        ("8/255", 8 / 255),
        ("true", True),
        ("True", True),
        ("None", None),
        ("rbf", "rbf"),
        ("0.1,0.2", [0.1, 0.2]),
        ("1/255,2/255", [1 / 255, 2 / 255]),
        ("[1, 2]", [1, 2]),
        ("NaN", "NaN"),
        ("a/b", "a/b"),
    ],
)
def test_values(text: str, value: Any) -> None:
    assert read_value(text) == value


def test_options_are_filed_by_instrument() -> None:
    read = read_options(
        ["reliability/calibration.bins=20", "calibration.class-wise=true", "pgd.eps=8/255"], NAMES
    )
    assert read == {
        "reliability/calibration": {"bins": 20, "class_wise": True},
        "security/pgd": {"eps": 8 / 255},
    }
    for wrong in ("calibration", "calibration=3", ".bins=3", "calibration.=3"):
        with pytest.raises(UsageError, match=r"MT11[35]"):
            read_options([wrong], NAMES)


def test_bounds_are_those_the_network_sees() -> None:
    assert input_bounds(None, None) is None
    assert input_bounds("-1,1", None) == (-1, 1)
    assert input_bounds(None, "0.5,0.25") == (-2, 2)
    assert input_bounds("0,255", "127.5,127.5") == (-1, 1)
    assert input_bounds(None, "0.5,0.4,0.5,0.2") == pytest.approx((-2, 3))  # two channels: the widest range
    for bounds, normalize in (("0", None), ("1,0", None), (None, "0.5"), (None, "0.5,0"), ("a,b", None)):
        with pytest.raises(UsageError, match="MT115"):
            input_bounds(bounds, normalize)


# ---------------------------------------------------------------------------------------------- endings


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Examination], dict[str, Any]]]:
    """Have the engine answer with a given examination; returns what it was asked."""
    import microtome.examination

    def answer(exam: Examination) -> dict[str, Any]:
        asked: dict[str, Any] = {}

        def examine(model: Any, data: Any, **keywords: Any) -> Examination:
            asked.update(keywords, model=model, data=data)
            keywords["watcher"].note("a note")
            return exam

        def resume(run_id: str, model: Any, data: Any, **keywords: Any) -> Examination:
            return examine(model, data, run=run_id, **keywords)

        monkeypatch.setattr(microtome.examination, "examine", examine)
        monkeypatch.setattr(microtome.examination, "resume", resume)
        return asked

    monkeypatch.setattr("microtome.registry.instrument_names", lambda: NAMES)
    monkeypatch.setattr("microtome.reference.reference_subject", lambda seed=0: ("model", "data"))
    monkeypatch.setattr(Examination, "table", lambda self: "the table")
    monkeypatch.setattr(Examination, "report", lambda self, path: Path(path).write_text("<html>") and path)
    yield answer


GOOD, WATCH, ALARM = (
    a_finding(name, grade=g) for name, g in zip(NAMES, ("good", "watch", "alarm"), strict=True)
)
FAILED = Finding(instrument=NAMES[2], status="failed", reason="ValueError: no")
MISSING = Finding(instrument=NAMES[2], status="missing", reason="stopped")


@pytest.mark.parametrize(
    ("findings", "argv", "status", "told"),
    [
        ((GOOD, WATCH), [], 0, ""),
        ((GOOD, WATCH, ALARM), [], 0, ""),
        ((GOOD, WATCH), ["--fail-on", "alarm"], 0, ""),
        ((GOOD, WATCH), ["--fail-on", "watch"], 1, "--fail-on watch: reliability/calibration"),
        ((GOOD, ALARM), ["--fail-on", "watch"], 1, "--fail-on watch: security/pgd"),
        ((GOOD, WATCH), ["--fail-if", "accuracy < 0.6"], 1, "--fail-if: accuracy < 0.6: ece is 0.5"),
        ((GOOD, WATCH), ["--fail-if", "accuracy > 0.6", "--fail-if", "calibration > 0.6"], 0, ""),
        ((GOOD, FAILED), [], 4, "failed: security/pgd: ValueError: no"),
        ((GOOD, FAILED), ["--fail-if", "pgd < 0.1"], 1, "not measured, failed"),
        ((GOOD, WATCH), ["--fail-if", "accuracy.ec < 0.6"], 2, "MT114"),
    ],
)
def test_the_status_says_how_it_went(
    engine: Any,
    capsys: pytest.CaptureFixture[str],
    findings: tuple[Finding, ...],
    argv: list[str],
    status: int,
    told: str,
) -> None:
    engine(an_exam(*findings))
    assert run(["examine", *argv]) == status
    out, err = capsys.readouterr()
    assert out.startswith("the table\n")  # whatever is judged, the results are printed
    assert "20260101-000000-aaaa" in out
    assert told in err


def test_a_stopped_run_says_how_to_go_on(engine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    engine(an_exam(GOOD, MISSING, status="stopped"))
    assert run(["examine", "--store", "my runs"]) == 130
    err = capsys.readouterr().err
    assert "not finished: security/pgd" in err
    assert "microtome examine --resume 20260101-000000-aaaa --store 'my runs'" in err


def test_json_stands_alone_on_stdout(engine: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    engine(an_exam(GOOD, FAILED))
    report = tmp_path / "out.html"
    assert run(["examine", "--json", "--report", str(report), "--fail-on", "watch"]) == 4
    out, err = capsys.readouterr()
    assert json.loads(out)["findings"]["reliability/accuracy"]["quantities"]["ece"]["value"] == 0.5
    assert str(report) in err
    assert report.exists()


def test_the_engine_is_asked_what_was_written(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = engine(an_exam(GOOD))
    (tmp_path / "cli_nets.py").write_text(
        "import torch\nbuild = lambda: torch.nn.Linear(2, 2)\ndata = [(1, 2)]\n"
    )
    monkeypatch.chdir(tmp_path)
    argv = [
        "examine",
        "cli_nets:build",
        "--data",
        "cli_nets:data",
        "--only",
        "reliability/*,pgd",
        "--skip",
        "accuracy",
        "--option",
        "pgd.eps=8/255",
        "--memory",
        "1GiB",
        "--seed",
        "3",
        "--label-offset",
        "1",
        "--task",
        "classification",
        "--normalize",
        "0.5,0.5",
        "--inputs",
        "a,b",
        "--target",
        "c",
        "--outputs",
        "probs",
    ]
    assert run(argv) == 0
    assert asked["only"] == ("reliability/*", "pgd")
    assert asked["skip"] == ("accuracy",)
    assert asked["options"] == {"security/pgd": {"eps": 8 / 255}}
    assert (asked["memory"], asked["seed"], asked["store"]) == ("1GiB", 3, "")
    assert (asked["label_offset"], asked["task"], asked["outputs"]) == (1, "classification", "probs")
    assert (asked["bounds"], asked["inputs"], asked["target"]) == ((-1, 1), ("a", "b"), "c")
    assert asked["command"].startswith("microtome")
    assert asked["source"]["target"] == "cli_nets:build"
    json.dumps(asked["source"])

    # and a resumed run is asked the same again, from another folder
    from microtome.store import open_store

    stopped = an_exam(MISSING, status="stopped", plan={"request": {"only": list(asked["only"]), "skip": []}})
    stopped.subject["source"] = asked["source"]
    with open_store() as store:
        store.save(stopped)
    monkeypatch.chdir("/")
    first = dict(asked)
    asked.clear()
    assert run(["examine", "--resume", "latest"]) == 0
    assert asked["run"] == stopped.id
    for key in ("bounds", "inputs", "target", "label_offset", "task", "outputs", "source", "data"):
        assert asked[key] == first[key], key
    assert type(asked["model"]) is type(first["model"])


# ---------------------------------------------------------------------------------------------- progress


def test_lines_tell_each_round_and_break_long_silences() -> None:
    now = [0.0]
    stream = io.StringIO()
    lines = Lines(stream, clock=lambda: now[0])
    lines.round_started(1, 1000, ("a", "b"))
    for _ in range(10):
        now[0] += 10
        lines.advanced(100)
    lines.found(ALARM)
    lines.found(FAILED)
    lines.round_finished(1, 100.0)
    assert stream.getvalue().splitlines() == [
        "round 1: 30%, about 1:10 left",
        "round 1: 60%, about 0:40 left",
        "round 1: 90%, about 0:10 left",
        "  security/pgd  ece 0.5 [0.4, 0.6]  alarm",
        "  security/pgd  failed: ValueError: no",
        "round 1: 2 instruments, 1000 rows, 100.0 s",
    ]


def test_a_watcher_never_raises() -> None:
    stream = io.StringIO()
    stream.close()
    Lines(stream).note("into a closed stream")


def test_the_bar_draws_and_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    stream = io.StringIO()
    bar = Bar(Console(file=stream, force_terminal=True, width=80, color_system=None))
    bar.round_started(1, 100, ("a",))
    bar.advanced(50)
    bar.found(ALARM)
    bar.note("[brackets] stay")
    bar.round_finished(1, 0.1)
    bar.round_started(2, 100, ("a", "b"))
    bar.close()
    drawn = stream.getvalue()
    assert "round 1  1 instrument" in drawn
    assert "round 2  2 instruments" in drawn
    assert "security/pgd  ece 0.5 [0.4, 0.6]  alarm" in drawn
    assert "[brackets] stay" in drawn


def test_pipes_get_lines() -> None:
    with for_terminal(io.StringIO()) as watcher:
        assert isinstance(watcher, Lines)


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 38, 725, 3723)] == ["0:00", "0:38", "12:05", "1:02:03"]
    assert finding_line(GOOD) == "reliability/accuracy  ece 0.5 [0.4, 0.6]"


# ---------------------------------------------------------------------------------------------- other verbs


def test_stored_runs_are_listed_shown_and_reported(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["list"]) == 0
    assert "microtome examine" in capsys.readouterr().err
    an_exam(GOOD, FAILED).save()
    assert run(["list"]) == 0
    assert re.search(
        r"20260101-000000-aaaa +2026-01-01 00:00:00 +complete +1/2 +0 +net", capsys.readouterr().out
    )
    assert run(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["measured"] == 1
    assert run(["show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == "20260101-000000-aaaa"
    monkeypatch.setattr(Examination, "report", lambda self, path: path)
    monkeypatch.chdir(tmp_path)
    assert run(["report", "latest"]) == 0
    assert capsys.readouterr().out == "20260101-000000-aaaa.html\n"
    assert run(["report", "--out", "x.html", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"] == "x.html"


def test_doctor_is_well_here(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["doctor"]) == 0
    assert re.search(r"package +torch +ok", capsys.readouterr().out)
    assert run(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["healthy"]
    assert {"name": "cpu", "topic": "device"}.items() <= next(
        check for check in report["checks"] if check["name"] == "cpu"
    ).items()


def test_doctor_finds_a_store_that_cannot_be_used(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert run(["doctor", "--store", str(blocked / "inside")]) == 1
    out = capsys.readouterr().out
    assert re.search(r"folder +store +broken", out)
    assert "needs care: store" in out


def test_papers_have_their_true_state(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["papers", "--json"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)) == 559
    assert err.startswith("559 papers: ")
    assert run(["papers", "--room", "security", "--json"]) == 0
    assert {standing["paper"]["room"] for standing in json.loads(capsys.readouterr().out)} == {"security"}
    assert run(["papers", "--state", "planned"]) == 0
    assert " planned " in capsys.readouterr().out


class Row(msgspec.Struct):
    instrument: str = "reliability/accuracy"
    specimen: str = "coin"
    quantity: str = "accuracy"
    reading: float | None = 0.5
    truth: float = 0.5
    error: float | None = 0.0
    tolerance: float = 0.01
    passed: bool = True
    why: str = "as many heads as tails"
    note: str = ""


def test_calibrate_leaves_with_one_when_a_reading_is_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import microtome.calibration

    rows = [Row()]
    monkeypatch.setattr(microtome.calibration, "calibrate", lambda only=(), watcher=None: rows)
    assert run(["calibrate", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True
    rows.append(Row(reading=0.9, error=0.4, passed=False))
    rows.append(Row(specimen="die", reading=None, error=None, passed=False, note="refused: six sides"))
    assert run(["calibrate"]) == 1
    out, err = capsys.readouterr()
    assert "OUTSIDE" in out
    assert "refused: six sides" in out
    assert "3 readings of 1 instruments, 2 outside tolerance" in err


def test_convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"w": torch.zeros(2)}, "epoch": 1}, "ckpt.pt")
    assert run(["convert", "ckpt.pt", "out.safetensors", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tensors"] == 1
    assert run(["convert", "ckpt.pt", "out.safetensors"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(["convert", "ckpt.pt", "out.safetensors", "--overwrite"]) == 0
    assert "left out" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------ the real engine

NETS = """
import time
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))

generator = torch.Generator().manual_seed(1)
x, y = torch.randn(64, 16, generator=generator), torch.randint(0, 3, (64,), generator=generator)
data = [(x[i:i + 4], y[i:i + 4]) for i in range(0, 64, 4)]
shifted = [(a, b + 1) for a, b in data]

class Slow:
    def __iter__(self):
        for batch in data:
            time.sleep(0.15)
            yield batch

slow = Slow()
"""


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    (tmp_path / "slow_nets.py").write_text(NETS)
    return tmp_path


def test_a_real_run_from_end_to_end(nets: Path) -> None:
    argv = ["examine", "slow_nets:build", "--data", "slow_nets:data", "--only", "accuracy", "--store", "runs"]
    done = microtome(*argv, "--json", "--fail-if", "accuracy > 0.99", cwd=nets)
    assert done.returncode == 0, done.stderr
    exam = json.loads(done.stdout)
    assert exam["status"] == "complete"
    assert exam["findings"]["reliability/accuracy"]["status"] == "measured"
    assert exam["subject"]["source"]["target"] == "slow_nets:build"

    again = microtome(*argv, "--fail-if", "accuracy <= 1", "--report", "out.html", cwd=nets)
    assert again.returncode == 1, again.stderr
    assert "accuracy" in again.stdout
    assert (nets / "out.html").read_text().lstrip().lower().startswith("<!doctype html>")

    compared = microtome("compare", exam["id"], "latest", "--store", "runs", cwd=nets)
    assert compared.returncode == 0, compared.stderr
    assert "accuracy" in compared.stdout


def test_a_real_plan_runs_nothing(nets: Path) -> None:
    done = microtome("plan", "slow_nets:build", "--data", "slow_nets:data", "--json", cwd=nets)
    assert done.returncode == 0, done.stderr
    assert "reliability/accuracy" in json.loads(done.stdout)["instruments"]


def test_a_subject_that_cannot_be_examined_leaves_with_three(nets: Path) -> None:
    (nets / "bad_nets.py").write_text("from slow_nets import *\nx = [(a[:, :5], b) for a, b in data]\n")
    done = microtome("examine", "bad_nets:build", "--data", "bad_nets:x", "--store", "runs", cwd=nets)
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("microtome: MT2")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
@pytest.mark.parametrize("sent", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_stopped_run_is_resumed_to_the_same_findings(nets: Path, sent: signal.Signals) -> None:
    chosen = ["--only", "accuracy", "--store", "runs"]
    argv = [
        sys.executable,
        "-m",
        "microtome",
        "examine",
        "slow_nets:build",
        "--data",
        "slow_nets:slow",
        *chosen,
    ]
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    process = subprocess.Popen(
        argv, cwd=nets, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    from microtome.store import open_store

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (nets / "runs").exists():
            with open_store(nets / "runs") as store:
                if store.list():
                    break
        time.sleep(0.1)
    time.sleep(0.6)  # into the pass, which takes about two seconds
    process.send_signal(sent)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "not finished: reliability/accuracy" in err
    (command,) = re.findall(r"continue with: microtome (.*)", err)
    resumed = microtome(*command.split(), "--json", cwd=nets)
    assert resumed.returncode == 0, resumed.stderr
    straight = microtome(
        "examine", "slow_nets:build", "--data", "slow_nets:data", *chosen, "--json", cwd=nets
    )
    one, other = (json.loads(done.stdout)["findings"]["reliability/accuracy"] for done in (resumed, straight))
    assert one["quantities"] == other["quantities"]


def test_a_full_disk_ends_the_storing_and_not_the_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    from microtome.passes import state
    from microtome.store import arrays, open_store

    def full(*given: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(arrays, "save_file", full)
    monkeypatch.setattr(state, "save_file", full)
    store = ["--store", str(tmp_path / "store")]
    status = run(["examine", "--only", "accuracy,calibration", "--no-calibrate", *store])
    shown = capsys.readouterr()
    assert status == 2
    assert "accuracy     0.9" in shown.out and "calibration  0.0" in shown.out
    assert "No space left on device" in shown.err and "this run cannot be resumed" in shown.err
    assert "the findings above are not stored" in shown.err and "MT199" not in shown.err
    with open_store(tmp_path / "store") as opened:
        assert [entry.status for entry in opened.list()] == ["partial"]
