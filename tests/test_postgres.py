"""The store and the lab on PostgreSQL: a server of this test's own, from Debian's packages, gone afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from test_web import HOME, OWN, WRITER
from web_lab import examination, findings

from microtome.store import Filter, Store, open_store
from microtome.web import application

pytest.importorskip("psycopg", reason="a store on PostgreSQL needs the package psycopg")


def programs() -> Path | None:
    """Where initdb and pg_ctl are; Debian keeps them off the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


BIN = programs()
pytestmark = pytest.mark.skipif(
    BIN is None, reason="no PostgreSQL on this machine: apt-get install postgresql"
)


def as_owner(command: list[str]) -> list[str]:
    """PostgreSQL does not run as root."""
    return ["runuser", "-u", "postgres", "--", *command] if os.geteuid() == 0 else command


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    # A socket's path has at most 107 characters, so not pytest's own folder.
    with tempfile.TemporaryDirectory(prefix="mt-pg-") as made:
        folder = Path(made)
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
        data = str(folder / "data")
        begin = [
            f"{BIN}/initdb",
            "-D",
            data,
            "-U",
            "lab",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-sync",
            "--locale=C.UTF-8",
        ]
        done = subprocess.run(as_owner(begin), capture_output=True, text=True, cwd=made)
        if done.returncode:
            pytest.skip(f"PostgreSQL could not be set up here: {done.stderr.strip()[-300:]}")
        options = f"-k {made} -c listen_addresses='' -c fsync=off"
        control = [f"{BIN}/pg_ctl", "-D", data, "-w", "-t", "30", "-l", str(folder / "log")]
        started = subprocess.run(
            as_owner([*control, "-o", options, "start"]), capture_output=True, text=True, cwd=made
        )
        if started.returncode:
            pytest.skip(f"PostgreSQL could not be started here: {started.stdout.strip()[-300:]}")
        try:
            yield f"postgresql://lab@/postgres?host={made}"
        finally:
            subprocess.run(as_owner([*control, "-m", "immediate", "stop"]), capture_output=True, cwd=made)


@pytest.fixture
def store(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("MICROTOME_ARRAYS", str(tmp_path))
    with open_store(url) as opened:
        yield opened
        for entry in opened.list():
            opened.delete(entry.id)


def test_what_goes_in_comes_out(store: Store) -> None:
    exam = examination()
    store.save(exam)
    loaded = store.load("e1")
    for name, original in exam.findings.items():
        assert loaded.findings[name].same_measurement(original)
    assert [entry.id for entry in store.list()] == ["e1"]
    assert store.journal == ""
    store.save(examination(findings={}))
    assert len(store.load("e1")) == 0


def test_pages_filters_and_tags(store: Store) -> None:
    for i in range(12):
        exam = examination(f"x{i:02d}", f"2026-01-01T00:00:{i:02d}Z", findings=findings() if i == 5 else {})
        exam.subject["name"] = "even % _net" if i % 2 == 0 else "odd net"
        store.save(exam)
    store.tag("x07", "chosen")
    lines, total = store.page(Filter(), 5, 5)
    assert (total, [line.id for line in lines]) == (12, ["x06", "x05", "x04", "x03", "x02"])
    assert [line.id for line in store.page(Filter(grade="alarm"))[0]] == ["x05"]
    assert store.page(Filter(words="EVEN"))[1] == 6 and store.page(Filter(words="% _"))[1] == 6
    assert store.page(Filter(words="n%t"))[1] == 0
    assert [line.id for line in store.page(Filter(words="chos odd"))[0]] == ["x07"]
    assert store.subjects() == [("odd net", 6), ("even % _net", 6)]
    assert store.lines(["x05"])[0].alarms == 1 and store.all_tags() == [("chosen", 1)]
    store.delete("x07")
    assert store.all_tags() == []


def test_the_pages_of_the_lab(store: Store) -> None:
    store.save(examination())
    store.save(examination("e2", findings=findings(1, 0.6)))
    client = TestClient(application(store), base_url=HOME)
    for path in (
        "/",
        "/?words=net&grade=alarm",
        "/e/e1",
        "/e/e1/layers",
        "/e/e1/examples/17",
        "/compare?of=e1&of=e2",
    ):
        answer = client.get(path)
        assert answer.status_code == 200, (path, answer.text[-300:])
    assert (
        client.post("/e/e1/tags", data={"add": "a"}, headers=OWN, follow_redirects=False).status_code == 303
    )
    assert store.lines(["e1"])[0].tags == ("a",)


def test_two_writers_and_a_reader_lose_nothing(store: Store, url: str, tmp_path: Path) -> None:
    import microtome

    source = str(Path(next(iter(microtome.__path__))).parent)
    store.begin(examination("shared", findings={}))
    environment = {"PYTHONPATH": source, "MICROTOME_ARRAYS": str(tmp_path)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, url, str(me)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for me in (0, 1)
    ]
    client, counts = TestClient(application(store), base_url=HOME), [0]
    while any(worker.poll() is None for worker in workers):
        assert client.get("/").status_code == 200
        counts.append(client.get("/e/shared/state").json()["found"])
    complaints = [worker.communicate(timeout=60)[1] for worker in workers]
    assert all(worker.returncode == 0 for worker in workers), complaints
    assert counts == sorted(counts)
    reading = store.read("shared")
    assert len(reading.exam) == 50 and not reading.damaged and len(store.lines(["shared"])[0].tags) == 10
