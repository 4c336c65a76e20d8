"""A run that is really killed goes on, and ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

import microtome as mt
import microtome.store
from microtome.reference import reference_subject
from microtome.subject import Subject

ONLY = (
    "reliability/accuracy",
    "represent/feature_rank",
    "represent/linear_probes",
    "dynamics/hessian_spectrum",
)
OPTIONS = {"dynamics/hessian_spectrum": {"steps": 8, "examples": 64}}

# Slow on purpose, so that the kill comes in the middle; the state is saved after every slice.
RUNNER = textwrap.dedent("""
    import sys, time
    import torch
    import microtome as mt
    from microtome.reference import reference_subject
    from microtome.subject import Subject

    torch.set_num_threads(1)
    model, loader = reference_subject()
    subject = Subject(model, loader)
    subject.bytes_per_row = 1 << 22  # few rows a slice: many slices a round

    class Slow:
        def round_started(self, index, rows, instruments): print("round", index, flush=True)
        def advanced(self, rows): time.sleep(0.02); print("rows", rows, flush=True)
        def round_finished(self, index, seconds): pass
        def found(self, finding): pass
        def note(self, text): pass

    exam = mt.examine(
        subject, only=ONLY, options=OPTIONS, memory="256MiB", store=sys.argv[1], watcher=Slow(), save_every=0.0
    )
    print("done", exam.id, flush=True)
""")


def subject() -> Subject:
    made = Subject(*reference_subject())
    made.bytes_per_row = 1 << 22
    return made


def kill_after(store: Path, words: str, count: int) -> None:
    """Start the run in a process of its own and kill it without warning once it has said something often enough."""
    code = RUNNER.replace("only=ONLY", f"only={ONLY!r}").replace("options=OPTIONS", f"options={OPTIONS!r}")
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(store)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    seen = 0
    deadline = time.monotonic() + 120
    for line in process.stdout:
        seen += line.startswith(words)
        if seen >= count or time.monotonic() > deadline:
            break
    assert process.poll() is None, "the run ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert seen >= count


def test_kill_and_resume(tmp_path: Path) -> None:
    undisturbed = mt.examine(subject(), only=ONLY, options=OPTIONS, memory="256MiB")
    for number, (words, count) in enumerate((("rows", 6), ("round", 4))):
        store = tmp_path / f"store{number}"
        kill_after(store, words, count)
        with mt.store.open_store(str(store)) as opened:  # type: ignore[attr-defined]
            (entry,) = opened.list()
            assert opened.load(entry.id).status == "running"
            assert any(opened.run_folder(entry.id).iterdir()), "no state was saved"
        exam = mt.resume(entry.id, subject(), store=str(store))
        assert exam.status == "complete"
        for name in ONLY:
            assert exam[name].same_measurement(undisturbed[name]), name


def test_resume_does_not_repeat_what_was_done(tmp_path: Path) -> None:
    store = tmp_path / "store"
    kill_after(store, "rows", 10)

    class Count:
        rows = 0

        def round_started(self, index: int, rows: int, instruments: tuple[str, ...]) -> None: ...
        def advanced(self, rows: int) -> None:
            Count.rows += rows

        def round_finished(self, index: int, seconds: float) -> None: ...
        def found(self, finding: object) -> None: ...
        def note(self, text: str) -> None:
            raise AssertionError(text)

    with mt.store.open_store(str(store)) as opened:  # type: ignore[attr-defined]
        (entry,) = opened.list()
    mt.resume(entry.id, subject(), store=str(store), watcher=Count())
    resumed, Count.rows = Count.rows, 0
    mt.examine(subject(), only=ONLY, options=OPTIONS, memory="256MiB", watcher=Count())
    assert resumed < Count.rows - 200


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked on this system's kind only")
def test_ctrl_c_in_a_worker_of_the_loader_is_the_runs_affair():
    from microtome.passes.run import Run
    from microtome.progress import Silent

    said: list[str] = []

    class Listening(Silent):
        def note(self, text: str) -> None:
            said.append(text)

    model = torch.nn.Linear(2, 2)
    run = Run(
        Subject(model, [(torch.zeros(2, 2), torch.tensor([0, 1]))]), {}, budget=1 << 20, watcher=Listening()
    )
    with run._interruptible():
        child = os.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(int(run._stop.is_set() or bool(said)))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        os.kill(os.getpid(), signal.SIGINT)
        assert run._stop.is_set() and len(said) == 1
