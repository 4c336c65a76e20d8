"""Every study runs at its small scale with finite numbers, and every record is of a study that is there."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path

import pytest

import microtome.studies
from microtome.papers import paper
from microtome.study import RECORDS, Study, recorded

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
    measured = study.measure(True)
    assert measured.numbers
    assert all(math.isfinite(value) for value in measured.numbers.values()), measured.numbers


def test_every_record_is_of_a_study():
    slugs = {importlib.import_module(name).STUDY.paper for name in MODULES}
    assert set(recorded()) <= slugs


@pytest.mark.parametrize("path", sorted(RECORDS.glob("*.json")), ids=lambda path: path.stem)
def test_a_record_says_how_to_repeat_it(path):
    record = json.loads(path.read_text())
    assert record["paper"] == path.stem
    assert record["verdict"] in ("reproduced", "partly", "not reproduced", "inconclusive")
    assert record["command"].endswith("--full")
    assert {"numbers", "claim", "decided_by", "seconds", "versions", "date"} <= set(record)
