"""Every study runs at its small scale with finite numbers, and every record is of a study that is there."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path

import msgspec
import pytest

import microtome.studies
from microtome.cli.main import run as command
from microtome.errors import UsageError
from microtome.figures import problems
from microtome.finding import Figure
from microtome.papers import paper
from microtome.study import RECORDS, Measured, Study, recorded, rows_of, run, study, study_names

HERE = Path(microtome.studies.__file__).parent
MODULES = sorted(
    f"microtome.studies.{path.parent.name}.{path.stem}"
    for path in HERE.glob("*/*.py")
    if not path.stem.startswith("_")
)


@pytest.mark.parametrize("name", MODULES)
def test_a_study_runs_small(name):
    study = importlib.import_module(name).STUDY
    assert isinstance(study, Study)
    assert name.rsplit(".", 1)[-1] == paper(study.paper).slug.replace("-", "_")
    for declared in (study.claim, study.null, study.control, study.threshold):
        assert declared.strip()
    for used in study.uses:
        imported(used)
    for other in study.relates:
        assert paper(other)
    found = run(study, smoke=True)
    assert found.numbers
    assert all(math.isfinite(value) for value in found.numbers.values()), found.numbers
    assert found.figure is None or not problems(msgspec.convert(found.figure, Figure))


def test_every_record_is_of_a_study():
    slugs = {importlib.import_module(name).STUDY.paper for name in MODULES}
    assert set(recorded()) <= slugs


@pytest.mark.parametrize("path", sorted(RECORDS.glob("*.json")), ids=lambda path: path.stem)
def test_a_record_says_how_to_repeat_it(path):
    record = json.loads(path.read_text())
    assert record["paper"] == path.stem
    assert record["verdict"] in ("reproduced", "partly", "not reproduced", "inconclusive")
    assert record["command"] == f"microtome study run {path.stem} --scale full"
    asked = {
        "numbers",
        "claim",
        "null",
        "control",
        "threshold",
        "decided_by",
        "seconds",
        "threads",
        "versions",
        "date",
    }
    assert asked <= set(record)
    assert record["seed"] == 0
    if record.get("figure"):
        assert not problems(msgspec.convert(record["figure"], Figure))
    assert path.stat().st_size < 200_000


def imported(path):
    module, _, name = path.partition(":")
    if not name:
        module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def hypothesis(measure):
    return Study(paper="fullgrad", claim="c", null="n", control="k", threshold="t", measure=measure)


def test_a_number_that_is_not_finite_is_no_result():
    bad = hypothesis(lambda smoke: Measured(numbers={"a": math.nan}, verdict="reproduced", decided_by="a"))
    with pytest.raises(ValueError, match="not finite: a"):
        run(bad, smoke=True)
    with pytest.raises(ValueError, match="not finite"):
        run(hypothesis(lambda smoke: Measured(numbers={}, verdict="reproduced", decided_by="a")), smoke=True)


def test_seeds_shift_only_what_takes_them():
    def measure(smoke, seed=0):
        return Measured(numbers={"seed": seed}, verdict="partly", decided_by="seed")

    found = run(hypothesis(measure), smoke=False, seed=3)
    assert (
        found.numbers == {"seed": 3.0} and found.seed == 3 and found.command.endswith("--scale full --seed 3")
    )
    fixed = hypothesis(lambda smoke: Measured(numbers={"a": 1.0}, verdict="partly", decided_by="a"))
    with pytest.raises(UsageError, match="MT421"):
        run(fixed, smoke=True, seed=1)


def test_the_command_lists_shows_and_runs(capsys):
    assert command(["study", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {row["slug"] for row in listed} == set(study_names())
    assert command(["study", "show", "convolution-arithmetic"]) == 0
    assert "reproduced: 0 mismatches" in capsys.readouterr().out
    assert command(["study", "run", "convolution-arithmetic", "--json"]) == 0
    shown = capsys.readouterr()
    (ran,) = json.loads(shown.out)
    assert ran["numbers"]["mismatches"] == 0 and "[1/1] convolution-arithmetic: runs" in shown.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["study", "run"], "MT423 no study is named"),
        (["study", "run", "fulgrad"], "MT420 no study is called 'fulgrad'; did you mean 'fullgrad'?"),
        (["study", "show", "fulgrad"], "MT420"),
        (["study", "run", "fullgrad", "--record"], "MT423 only full runs from seed 0 are recorded"),
        (["study", "run", "fullgrad", "--jobs", "0"], "MT423 --jobs"),
        (["study", "list", "--room", "explian"], "did you mean 'explain'"),
    ],
)
def test_wrong_requests_of_the_command(words, said, capsys):
    assert command(words) == 2
    assert said in capsys.readouterr().err


def test_a_study_that_fails_is_named_and_the_others_are_kept(capsys):
    assert command(["study", "run", "convolution-arithmetic", "--seed", "1"]) == 4
    assert "convolution-arithmetic: failed" in capsys.readouterr().err


def test_an_unknown_study():
    with pytest.raises(UsageError, match="MT420"):
        study("fulgrad")


def test_rows_of_reads_names_by_a_pattern():
    numbers = {
        "wide, deletion, FullGrad": 0.2,
        "wide, deletion, FullGrad, low": 0.1,
        "wide, deletion, FullGrad, high": 0.3,
        "deep, deletion, random": 0.5,
        "width 16: accuracy": 0.9,
        "deletion below random": 1.0,
    }
    assert rows_of(numbers, "{kind}, deletion, {map}") == [
        {"kind": "wide", "map": "FullGrad", "value": 0.2, "low": 0.1, "high": 0.3},
        {"kind": "deep", "map": "random", "value": 0.5},
    ]
    assert rows_of(numbers, "width {width}: accuracy") == [{"width": 16.0, "value": 0.9}]
    assert rows_of(numbers, "deletion below random") == [{"value": 1.0}]
    assert rows_of(numbers, "{kind}, insertion") == []
