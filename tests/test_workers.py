"""Work in forked processes: each apart, failures named, the rest kept."""

from __future__ import annotations

import os
import signal
import time

import pytest

from microtome.cli import workers

SEEN: list[int] = []


def work(task):
    SEEN.append(task)
    print("what work prints is dropped")
    if task == 1:
        raise ValueError("two lines\nthe last says it")
    if task == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if task == 3:
        time.sleep(0.5)
    return f"{task}: {SEEN}, {os.environ['OMP_NUM_THREADS']} thread, {os.getpid()}"


@pytest.mark.parametrize("count", [2, 6])
def test_each_task_is_apart(count, monkeypatch, capfd):
    monkeypatch.setattr(workers, "WARM", ("json", "no_such_package"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = {
        task: (text, error) for task, text, error in workers.apart(work, range(count), jobs=2, threads=7)
    }
    assert set(found) == set(range(count))
    assert found.pop(1) == ("", "ValueError: the last says it")
    if count > 2:
        text, error = found.pop(2)
        assert not text and error == f"its process ended with status {-signal.SIGKILL}"
    texts = [text for text, error in found.values() if not error]
    assert len(texts) == len(found)
    for task, (text, _) in found.items():
        assert text.startswith(f"{task}: [{task}], 1 thread, ")  # nothing of what others did
    assert len({text.rsplit(" ", 1)[-1] for text in texts} | {str(os.getpid())}) == len(texts) + 1
    out, err = capfd.readouterr()
    assert "dropped" not in out + err


def test_threads_are_set_for_the_processes_alone(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (found,) = workers.apart(work, [5], jobs=1, threads=3)
    assert "3 thread" in found[1] and "OMP_NUM_THREADS" not in os.environ


def test_stopping_early_ends_what_runs():
    began = time.monotonic()
    results = workers.apart(work, [0, 3], jobs=2, threads=1)
    assert next(results)[0] == 0
    results.close()
    assert time.monotonic() - began < 60
