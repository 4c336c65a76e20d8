"""The store: what goes in comes out, from several processes, and every failure is one clear sentence."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from microtome.errors import StoreError
from microtome.finding import Coverage, Examination, Figure, Finding, Quantity, Table, Threshold, refused
from microtome.store import database as database_module
from microtome.store import locate, open_store
from microtome.store.arrays import array_path


def finding(instrument: str = "reliability/accuracy", **changes: object) -> Finding:
    made: dict[str, object] = {
        "headline": "accuracy",
        "summary": "It is right in 97 of 100 cases.",
        "quantities": {"accuracy": Quantity(value=0.97, low=0.95, high=0.98, how="Wilson", better="higher")},
        "tables": {"by class": Table(columns=("class", "n"), rows=(("a", 3), ("b", None)))},
        "figures": {"f": Figure(title="F", spec={"mark": "bar", "data": {"values": [{"a": 1}]}})},
        "arrays": {"samples": np.array([0.0, 1.0, 1.0]), "rows": np.arange(3)},
        "threshold": Threshold(
            quantity="accuracy", watch=0.9, alarm=0.5, worse="below", source="chosen here"
        ),
        "caveats": ("small",),
        "instrument": instrument,
        "options": {"bins": 15},
        "grade": "good",
        "coverage": Coverage(rows=3, rows_total=3),
        "seconds": 0.5,
    }
    return Finding(**(made | changes))  # type: ignore[arg-type]


def examination(exam_id: str = "e1", created: str = "2026-01-01T00:00:00Z", **changes: object) -> Examination:
    made: dict[str, object] = {
        "id": exam_id,
        "created": created,
        "subject": {"name": "net", "task": "classification"},
        "findings": {
            "reliability/accuracy": finding(),
            "represent/rank": Finding(
                instrument="represent/rank", status="refused", reason="no layers", question="How many?"
            ),
        },
        "seconds": 2.5,
        "calibration": {"reliability/accuracy": [{"specimen": "planted", "error": 0.0}]},
    }
    return Examination(**(made | changes))  # type: ignore[arg-type]


def code_of(caught: pytest.ExceptionInfo[StoreError]) -> str:
    error = caught.value
    assert str(error).startswith(error.code)
    assert "\n" not in str(error)
    return error.code


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    exam = examination()
    with open_store(tmp_path) as store:
        assert store.save(exam) == "e1"
        loaded = store.load("e1")
    assert list(loaded.findings) == list(exam.findings)
    for name, original in exam.findings.items():
        assert loaded.findings[name].same_measurement(original)
        assert loaded.findings[name].seconds == original.seconds
    assert loaded.subject == exam.subject
    assert loaded.calibration == exam.calibration
    assert (loaded.status, loaded.seconds) == ("complete", 2.5)


def test_a_string_of_another_class_is_a_string(tmp_path: Path) -> None:
    class Version(str):
        __slots__ = ()

    with open_store(tmp_path) as store:
        store.save(examination(versions={"torch": Version("2.13.0+cpu")}))
        assert store.load("e1").versions == {"torch": "2.13.0+cpu"}


def test_findings_are_kept_as_they_come_and_in_order(tmp_path: Path) -> None:
    running = examination(findings={})
    with open_store(tmp_path) as store:
        store.begin(running)
        for name in ("z/last", "a/first", "m/middle"):
            store.save_finding("e1", finding(name))
        store.save_finding("e1", finding("z/last", summary="again"))
        with open_store(tmp_path) as other:  # another process sees them before the end
            seen = other.load("e1")
        assert list(seen.findings) == ["z/last", "a/first", "m/middle"]
        assert seen.findings["z/last"].summary == "again"
        assert seen.status == "running"
        store.finish("e1", "stopped")
        assert store.load("e1").status == "stopped"
        store.begin(running)  # resumed: what was measured stays
        assert len(store.load("e1")) == 3
        store.save(examination())
        assert list(store.load("e1").findings) == ["reliability/accuracy", "represent/rank"]
    assert not (tmp_path / "arrays" / "e1" / "z__last.safetensors").exists()
    assert (tmp_path / "arrays" / "e1" / "reliability__accuracy.safetensors").exists()


def test_list_latest_prefix_and_delete(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        assert store.list() == []
        with pytest.raises(StoreError, match="no examination") as empty:
            store.latest()
        assert code_of(empty) == "MT135"
        store.save(examination("abc1", "2026-01-01T00:00:00Z"))
        store.save(examination("abd2", "2026-03-01T00:00:00Z"))
        store.save(examination("xyz3", "2026-02-01T00:00:00Z"))
        assert [entry.id for entry in store.list()] == ["abd2", "xyz3", "abc1"]
        newest = store.list()[0]
        assert (newest.subject, newest.findings, newest.measured, newest.alarms) == ("net", 2, 1, 0)
        assert store.latest().id == "abd2" == store.load("latest").id
        assert store.load("x").id == "xyz3"
        assert store.load("abc1").id == "abc1"
        with pytest.raises(StoreError, match=r"2 examinations begin with 'ab'.*abc1, abd2"):
            store.load("ab")
        with pytest.raises(StoreError, match="did you mean 'xyz3'"):
            store.load("xzy3")
        store.run_folder("xyz3").joinpath("state").write_text("x")
        assert store.delete("xyz") == "xyz3"
        assert [entry.id for entry in store.list()] == ["abd2", "abc1"]
    assert not (tmp_path / "arrays" / "xyz3").exists()
    assert not (tmp_path / "runs" / "xyz3").exists()


def test_an_id_equal_to_a_prefix_of_another_is_itself(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.save(examination("a"))
        store.save(examination("ab"))
        assert store.load("a").id == "a"


STORED = (
    *("bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float16", "float32", "float64", "complex64"),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    arrays=st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda s: s != "__metadata__" and s.isprintable()),
        st.sampled_from(STORED).flatmap(
            lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
        ),
        max_size=3,
    )
)
def test_arrays_survive_bit_for_bit(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    with open_store(tmp_path) as store:
        store.save(examination(findings={"a/b": finding("a/b", arrays=arrays)}))
        loaded = store.load("e1").findings["a/b"].arrays
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype
        assert loaded[name].shape == array.shape
        assert loaded[name].tobytes() == array.tobytes()


def test_layout_and_byte_order_do_not_matter(tmp_path: Path) -> None:
    whole = np.arange(12.0).reshape(3, 4)
    arrays = {"turned": whole.T, "every": whole[:, ::2], "big": whole.astype(">f8"), "zero-d": np.array(3.0)}
    with open_store(tmp_path) as store:
        store.save(examination(findings={"a/b": finding("a/b", arrays=arrays)}))
        loaded = store.load("e1").findings["a/b"].arrays
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array, strict=False)
        assert loaded[name].shape == array.shape


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"arrays": {"names": np.array(["a", "b"])}}, r"arrays\['names'\].*put text into a table"),
        ({"arrays": {"things": np.array([None, {}])}}, "object"),
        ({"arrays": {"long": np.zeros(2, np.longdouble)}}, "longdouble|float128"),
        ({"arrays": {"list": [1, 2]}}, "a list is not a numpy array"),
        ({"options": {"eps": float("nan")}}, "options.eps is nan"),
        ({"options": {"deep": [1, {"x": float("-inf")}]}}, r"options.deep\[1\].x is -inf"),
        ({"figures": {"f": Figure(title="F", spec={"v": float("nan")})}}, "figures.f.spec.v is nan"),
        ({"options": {"matrix": np.eye(2)}}, "options.matrix is an array"),
        ({"options": {"net": object()}}, "a object cannot be stored"),
        ({"instrument": ""}, "without its instrument"),
    ],
)
def test_what_would_be_lost_in_silence_is_refused(tmp_path: Path, bad: dict[str, object], words: str) -> None:
    with open_store(tmp_path) as store:
        store.begin(examination(findings={}))
        with pytest.raises(StoreError, match=words) as caught:
            store.save_finding("e1", finding(**bad))
        assert code_of(caught) == "MT134"
        store.save_finding("e1", finding(options={"eps": np.float32(0.5), "k": np.int64(3), "pair": (1, 2)}))
        assert store.load("e1")["accuracy"].options == {"eps": 0.5, "k": 3, "pair": [1, 2]}


@pytest.mark.parametrize("exam_id", ["", "../x", "a/b", ".hidden", "a b", "x" * 129])
def test_an_id_cannot_leave_the_folder(tmp_path: Path, exam_id: str) -> None:
    with open_store(tmp_path) as store, pytest.raises(StoreError, match="cannot be an examination's id"):
        store.save(examination(exam_id))


@pytest.mark.parametrize("name", ["room/method", "../../etc/passwd", "..", "a__b", "plug in/ünï:*?", "a\\b"])
def test_no_instrument_name_leaves_the_folder(tmp_path: Path, name: str) -> None:
    path = array_path(tmp_path, "e1", name)
    assert path.parent == tmp_path / "e1"
    assert path.resolve().parent == (tmp_path / "e1").resolve()
    with open_store(tmp_path) as store:
        store.save(examination(findings={name: finding(name)}))
        assert store.load("e1").findings[name].same_measurement(finding(name))


def test_names_that_look_alike_have_their_own_files(tmp_path: Path) -> None:
    assert array_path(tmp_path, "e", "a/b") != array_path(tmp_path, "e", "a__b")


def test_save_finding_needs_its_examination(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        with pytest.raises(StoreError, match="no examination 'nobody'") as caught:
            store.save_finding("nobody", finding())
        assert code_of(caught) == "MT135"
        with pytest.raises(StoreError, match="no examination"):
            store.finish("nobody", "complete")
    assert not (tmp_path / "arrays" / "nobody").exists()


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MICROTOME_STORE", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert locate().file == tmp_path / "data" / "microtome" / "microtome.db"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert locate().file == Path.home() / ".local/share/microtome/microtome.db"
    monkeypatch.setenv("MICROTOME_STORE", str(tmp_path / "mine"))
    assert locate().file == tmp_path / "mine" / "microtome.db"
    assert locate(tmp_path / "other").file == tmp_path / "other" / "microtome.db"
    single = locate(tmp_path / "runs.db")
    assert (single.file, single.arrays) == (tmp_path / "runs.db", tmp_path / "runs-arrays")
    assert locate(f"sqlite:///{tmp_path}/runs.db") == single
    server = locate("postgresql://me:secret@host/lab")
    assert server.url.drivername == "postgresql+psycopg"
    assert "secret" not in server.text()
    for wrong in ("mysql://host/x", "sqlite://", "://", "sqlite:///:memory:"):
        with pytest.raises(StoreError) as caught:
            locate(wrong)
        assert code_of(caught) == "MT131"


def test_unwritable_store(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file.txt"
    in_the_way.write_text("not a folder")
    with pytest.raises(StoreError, match=r"cannot be written.*--store") as caught:
        open_store(in_the_way / "store")
    assert code_of(caught) == "MT130"


def test_a_store_that_can_only_be_read_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(tmp_path) as store:
        store.save(examination())
    monkeypatch.setattr(database_module.os, "access", lambda path, mode: False)
    with open_store(tmp_path) as store:
        assert store.load("e1")["accuracy"].value == 0.97
        with pytest.raises(StoreError, match="can only be read") as caught:
            store.save(examination("e2"))
        assert code_of(caught) == "MT130"
        assert [entry.id for entry in store.list()] == ["e1"]


def test_corrupted_database(tmp_path: Path) -> None:
    (tmp_path / "microtome.db").write_bytes(
        b"this is no database at all, but long enough to be read as one" * 40
    )
    with pytest.raises(StoreError, match="damaged") as caught:
        open_store(tmp_path)
    assert code_of(caught) == "MT132"


def test_damage_in_the_middle(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.save(examination())
    path = tmp_path / "microtome.db"
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE findings SET body = '{\"headline\": 3}'")
    raw.close()
    with open_store(tmp_path) as store, pytest.raises(StoreError, match="cannot be read") as caught:
        store.load("e1")
    assert code_of(caught) == "MT132"


def test_newer_schema(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.save(examination(schema=999))
        with pytest.raises(StoreError, match="schema 999") as caught:
            store.load("e1")
        assert code_of(caught) == "MT133"
    with sqlite3.connect(tmp_path / "microtome.db") as raw:
        raw.execute("UPDATE microtome_schema SET version = 999")
    raw.close()
    with pytest.raises(StoreError, match="upgrade") as caught:
        open_store(tmp_path)
    assert code_of(caught) == "MT133"


def test_missing_and_damaged_arrays(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.save(examination())
        path = array_path(store.location.arrays, "e1", "reliability/accuracy")
        original = path.read_bytes()
        path.write_bytes(original[: len(original) // 2])
        with pytest.raises(StoreError, match="cannot be read") as caught:
            store.load("e1")
        assert code_of(caught) == "MT136"
        path.unlink()
        with pytest.raises(StoreError, match="missing") as caught:
            store.load("e1")
        assert code_of(caught) == "MT136"


def test_write_ahead_log_and_its_fallback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(tmp_path / "here") as store:
        assert store.journal == "wal"
    monkeypatch.setattr(database_module, "on_network", lambda folder: True)
    with open_store(tmp_path / "far") as store:
        assert store.journal == "delete"
        store.save(examination())
        assert store.load("e1").id == "e1"
    with open_store(tmp_path / "here") as store:  # moved onto a network since
        assert store.journal == "delete"


def test_a_store_locked_for_long_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "BUSY_SECONDS", 0.2)
    with open_store(tmp_path) as store:
        store.save(examination())
        blocker = sqlite3.connect(tmp_path / "microtome.db", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        assert store.load("e1").id == "e1"  # readers do not wait
        with pytest.raises(StoreError, match="locked") as caught:
            store.finish("e1", "partial")
        assert code_of(caught) == "MT137"
        blocker.execute("ROLLBACK")
        blocker.close()
        store.finish("e1", "partial")


WRITER = """
import sys
import numpy as np
from microtome.finding import Examination, Finding
from microtome.store import open_store
folder, me = sys.argv[1:]
with open_store(folder) as store:
    own = Examination(id=f"own{me}", created=me, subject={"name": me}, findings={})
    store.begin(own)
    for i in range(20):
        made = Finding(instrument=f"w{me}/i{i}", arrays={"a": np.full(50, float(me))})
        store.save_finding("shared", made)
        store.save_finding(own.id, made)
    store.finish(own.id, "complete")
"""


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    import microtome

    source = str(Path(next(iter(microtome.__path__))).parent)
    workers = []
    for me in range(4):  # the first ones also race to create the store
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(me)]
        workers.append(
            subprocess.Popen(command, env={"PYTHONPATH": source}, stderr=subprocess.PIPE, text=True)
        )
    with open_store(tmp_path) as store:
        store.begin(examination("shared", findings={}))
        complaints = [worker.communicate(timeout=120)[1] for worker in workers]
        assert all(worker.returncode == 0 for worker in workers), complaints
        shared = store.load("shared")
        assert len(shared) == 80
        assert {entry.id: entry.findings for entry in store.list()} == {
            "shared": 80,
            **{f"own{me}": 20 for me in range(4)},
        }
    for name, each in shared.findings.items():
        assert (each.arrays["a"] == float(name[1])).all()


def test_nothing_is_pickled(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.save(examination(findings={"a/b": finding("a/b"), "c/d": refused("no")}))
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or path.suffix in {".db", ".safetensors"} or "microtome.db-" in path.name


@pytest.mark.parametrize(
    "verb", [["list"], ["show"], ["report"], ["compare", "a", "b"], ["view"], ["examine", "--resume", "a"]]
)
def test_who_only_reads_does_not_create_a_store(
    tmp_path: Path, verb: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    from microtome.cli.main import run

    gone = tmp_path / "mistyped" / "store"
    assert run([*verb, "--store", str(gone)]) == 2
    assert "MT182 there is no store here" in capsys.readouterr().err
    assert not gone.parent.exists()
