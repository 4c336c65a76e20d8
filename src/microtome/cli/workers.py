"""Work in processes of its own, forked from one that has already imported what takes seconds to import.

A process that starts anew imports torch, PyTorch Geometric and torch's tracer before it does anything, about three
seconds each time. A fork has them from the start, and is otherwise as apart: what it changes, keeps or breaks is its
own. Where there is no fork (Windows), each process starts anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection, forkserver, get_all_start_methods, get_context
from typing import Any, TypeVar

Task = TypeVar("Task")
WARM = (
    "microtome.cli.study",
    "microtome.population",
    "torch.fx.experimental.proxy_tensor",  # with the next, what the first traced training step imports
    "torch._dynamo",
    "torch.export._trace",  # of captured networks
    "torch_geometric.nn",
    "sklearn.linear_model",
)
"""Imported once; what is not installed is left out."""


def apart(
    work: Callable[[Task], str], tasks: Sequence[Task], *, jobs: int, threads: int
) -> Iterator[tuple[Task, str, str]]:
    """(task, what ``work`` returned for it, error) as they end, ``jobs`` at a time; one of the two is empty.

    Args:
        work: a function of a module; what it prints is dropped.
        threads: of each process, unless OMP_NUM_THREADS says otherwise.
    """
    forks = len(tasks) > 2 and "forkserver" in get_all_start_methods()  # else it imports in vain
    context: Any = get_context("forkserver" if forks else "spawn")
    waiting = list(tasks)[::-1]
    running: dict[Any, tuple[Task, Any]] = {}
    try:
        with _threads(threads):
            if forks:
                context.set_forkserver_preload(list(WARM))
                forkserver.ensure_running()
            while waiting or running:
                while waiting and len(running) < jobs:
                    task = waiting.pop()
                    ours, theirs = context.Pipe(duplex=False)
                    process = context.Process(target=_work, args=(theirs, work, task))
                    process.start()
                    theirs.close()
                    running[ours] = (task, process)
                ready: Any
                for ready in connection.wait(list(running)):
                    task, process = running.pop(ready)
                    try:
                        found, error = ready.recv()
                        process.join()
                    except EOFError:  # it died before it could answer
                        process.join()
                        found, error = "", f"its process ended with status {process.exitcode}"
                    yield task, found, error
    finally:
        for _, process in running.values():
            process.terminate()


def _work(answer: connection.Connection, work: Callable[[Any], str], task: Any) -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(quiet, stream)
    try:
        answer.send((work(task), ""))
    except Exception as error:
        lines = str(error).strip().splitlines()
        answer.send(("", f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """For processes started within: libraries read the number of threads when they are loaded."""
    given = os.environ.get("OMP_NUM_THREADS")
    os.environ.setdefault("OMP_NUM_THREADS", str(count))
    try:
        yield
    finally:
        if given is None:
            del os.environ["OMP_NUM_THREADS"]


__all__ = ["apart"]
