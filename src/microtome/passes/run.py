"""Running rounds: one pass serves all pending folds; then every instrument goes on or answers."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import signal as os_signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch.utils import _pytree as pytree

from microtome.batches import Batch, concatenate, joinable, split
from microtome.errors import MicrotomeError, Refusal, StoreError, SubjectError, told
from microtome.finding import Coverage, Finding, refused
from microtome.folds.base import Fold, State
from microtome.instrument import Asking, Instrument
from microtome.passes.chunks import Chunker, halves
from microtome.passes.groups import Group, make_groups, selection_key
from microtome.passes.memory import kept_bytes
from microtome.passes.plan import folds_of, forwards_of
from microtome.passes.state import SavedRound, StateFolder
from microtome.progress import Silent, Watcher
from microtome.signals.capture import is_out_of_memory, left_as_found, seed_random
from microtome.signals.evaluate import Evaluator, Failure
from microtome.subject import Subject


class Stopped(Exception):  # noqa: N818 - a request, not a fault
    """Someone asked the run to stop; everything up to the last slice is saved."""


@dataclass
class _Live:
    """One instrument at work."""

    name: str
    instrument: Instrument
    generator: Asking
    asked: Any = None
    folds: list[Fold] = field(default_factory=list)
    rounds: int = 0
    seconds: float = 0.0
    rows: int = 0
    layers: set[str] = field(default_factory=set)


class Run:
    """One examination at work.

    Args:
        subject: what is examined.
        instruments: by name, in reading order.
        budget: bytes of memory slices may take.
        seed: for networks that draw random numbers.
        watcher: is told what happens.
        folder: where the state of running folds is kept; None keeps none.
        save_every: seconds between two savings within a round.
        found: called with each finding as soon as it is there.
    """

    def __init__(
        self,
        subject: Subject,
        instruments: Mapping[str, Instrument],
        *,
        budget: int,
        seed: int = 0,
        watcher: Watcher | None = None,
        folder: Path | None = None,
        save_every: float = 20.0,
        found: Callable[[Finding], None] | None = None,
    ) -> None:
        self.subject, self.instruments, self.budget = subject, instruments, budget
        self.watcher = watcher or Silent()
        self.states = StateFolder(folder) if folder is not None else None
        self.save_every = save_every
        self._found = found or (lambda finding: None)
        self.findings: dict[str, Finding] = {}
        self.history: list[dict[str, Any]] = []
        self.stopped = False
        self.evaluator = Evaluator(subject, seed=seed, cache_bytes=kept_bytes(budget))
        self._cache: dict[bytes, Batch] = {}
        self._guarded = ExitStack()
        self._others: set[int] = set()
        self._marks: list[float] = []
        """What tells the batches of the first pass from others."""
        self._read_whole = False
        """Whether the marks are those of a whole pass, or of the part an interrupted run had read."""
        self._limit: int | None = None
        self._stop = threading.Event()

    # -- rounds ------------------------------------------------------------------------------------

    def execute(self) -> dict[str, Finding]:
        """Run to the end, or until stopped; returns the findings by name, missing ones included."""
        with self._interruptible(), _quiet_collector(), left_as_found(self.subject.model), self._guarded:
            live = self._start()
            index = 0
            try:
                while live:
                    index += 1
                    states, failures = self._round(index, live)
                    live = self._advance(live, states, failures)
                    self.evaluator.forget()
            except Stopped:
                self.stopped = True
            except SubjectError as error:
                if not any(f.status == "measured" for f in self.findings.values()):
                    raise
                # What other instruments have measured is kept.
                for one in live:
                    self._finish(one.name, Finding(status="failed", reason=str(error)), one)
            finally:
                for one in live:
                    one.generator.close()
        for name in self.instruments:
            if name not in self.findings:
                reason = "stopped before it was finished" if self.stopped else "the run ended early"
                self.findings[name] = self._stamp(name, Finding(status="missing", reason=reason), None)
        if self.states is not None and not self.stopped:
            self.states.remove()
        self.findings = {name: self.findings[name] for name in self.instruments}
        return self.findings

    def _start(self) -> list[_Live]:
        live = []
        for name, instrument in self.instruments.items():
            lacking = instrument.needs.lacks(self.subject)
            if lacking:
                self._finish(name, refused(lacking), None)
                continue
            one = _Live(name, instrument, instrument.examine(self.subject))
            if self._step(one, lambda g: next(g)):
                live.append(one)
        return live

    def _step(self, one: _Live, resume: Callable[[Asking], Any]) -> bool:
        """Let one instrument go on; returns whether it asked again."""
        began = time.perf_counter()
        try:
            one.asked = resume(one.generator)
            one.folds = folds_of(one.asked)
            for fold in one.folds:
                _, rows = selection_key(self.subject, fold)
                one.rows = max(one.rows, self.subject.examples if rows is None else len(rows))
                one.layers |= {
                    s.arguments[0] for signal in fold.signals for s in signal.walk() if s.kind == "activation"
                }
            one.rounds += 1
            one.seconds += time.perf_counter() - began
            return True
        except StopIteration as end:
            one.seconds += time.perf_counter() - began
            finding = end.value
            if not isinstance(finding, Finding):
                finding = Finding(status="failed", reason="the instrument returned no finding")
        except Refusal as refusal:
            finding = refused(str(refusal))
        except Exception as error:
            if isinstance(error, MicrotomeError) and not one.rounds:
                raise  # what was asked for cannot be understood, and nothing has run yet
            if is_out_of_memory(error):
                finding = Finding(status="failed", reason="memory ran out while it worked on its results")
            else:
                last = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{Path(last.filename).name}:{last.lineno}"
                finding = Finding(status="failed", reason=f"{told(error)} ({where})")
        one.generator.close()
        self._finish(one.name, finding, one)
        return False

    def _advance(
        self, live: list[_Live], states: Mapping[Fold, State | None], failures: Mapping[Fold, BaseException]
    ) -> list[_Live]:
        results: dict[Fold, Any] = {}
        errors: dict[Fold, BaseException] = dict(failures)
        for one in live:
            for fold in one.folds:
                if fold not in results and fold not in errors:
                    try:
                        results[fold] = fold.read(states.get(fold))
                    except Exception as error:
                        errors[fold] = error
        going = []
        for one in live:
            broken = next((errors[f] for f in one.folds if f in errors), None)
            if broken is not None:
                again = self._step(one, lambda g, cause=broken: g.throw(cause))  # type: ignore[misc]
            else:
                _, spec = pytree.tree_flatten(one.asked)
                answer = pytree.tree_unflatten([results[f] for f in one.folds], spec)
                again = self._step(one, lambda g, answer=answer: g.send(answer))  # type: ignore[misc]
            if again:
                going.append(one)
        return going

    def _finish(self, name: str, finding: Finding, one: _Live | None) -> None:
        stamped = self._stamp(name, finding, one)
        self.findings[name] = stamped
        self._found(stamped)
        self.watcher.found(stamped)

    def _stamp(self, name: str, finding: Finding, one: _Live | None) -> Finding:
        instrument = self.instruments[name]
        grade = None
        threshold = finding.threshold
        if finding.status == "measured" and threshold is not None:
            grade = threshold.grade(finding.quantities[threshold.quantity].value)
        coverage = finding.coverage
        if coverage is None and one is not None and finding.status == "measured":
            named = {layer.name for layer in self.subject.layers}
            seen = one.layers & named
            coverage = Coverage(
                rows=one.rows,
                rows_total=self.subject.examples,
                layers=len(seen) if seen else None,
                layers_total=len(named) if seen else None,
            )
        return msgspec.structs.replace(
            finding,
            instrument=name,
            question=instrument.question(),
            how_to_read=instrument.how_to_read,
            papers=tuple(dict.fromkeys((*instrument.papers, *finding.papers))),
            options=instrument.options(),
            grade=grade,
            coverage=coverage,
            seconds=one.seconds if one is not None else 0.0,
            rounds=one.rounds if one is not None else 0,
        )

    # -- one pass ----------------------------------------------------------------------------------

    def _round(
        self, index: int, live: list[_Live]
    ) -> tuple[dict[Fold, State | None], dict[Fold, BaseException]]:
        groups = make_groups(self.subject, (f for one in live for f in one.folds), self.budget)
        order = [fold for group in groups for fold in group.folds]
        for world in (world for group in groups for world in group.program.worlds):
            if world.subject is not None:
                self._guard(world.subject)
        work = _Work(order)
        saved = self.states.load(index, order) if self.states is not None else None
        if self.states is not None and self.states.unread:
            self.watcher.note(f"what was saved of round {index} cannot be used: {self.states.unread}")
        if saved is not None:
            work.states, work.failures = saved.states, saved.failures
            if saved.marks:
                self._marks, self._read_whole = saved.marks, saved.complete or self._read_whole
            if saved.complete and not saved.omitted:
                return work.states, work.failures
            if saved.complete:
                groups = make_groups(self.subject, saved.omitted, self.budget)
            else:
                for group in groups:
                    done, group.size = saved.groups.get(group.key.hex(), (0, group.size))
                    work.done[group.key] = done
        if self._limit is not None:
            for group in groups:
                group.size = min(group.size, self._limit)
        total = sum(g.count for g in groups)
        asked = {one.name: one.folds for one in live}
        self.watcher.round_started(index, total, tuple(asked))
        began = time.perf_counter()
        self._read(index, groups, work)
        seconds = time.perf_counter() - began
        for one in live:
            one.seconds += sum(work.spent.get(fold, 0.0) for fold in set(one.folds))
        self.history.append(
            {
                "round": index,
                "seconds": seconds,
                "instruments": list(asked),
                "groups": [
                    {
                        "rows": group.label(self.subject.examples),
                        "slice_rows": min(group.size, group.count),
                        "worlds": sum(cost > 0 for cost in costs),
                        "forwards_per_slice": round(sum(costs), 2),
                    }
                    for group, costs in ((g, forwards_of(g).values()) for g in groups)
                ],
            }
        )
        self.watcher.round_finished(index, seconds)
        self._save(index, work, groups, complete=True)
        return work.states, work.failures

    def _read(self, index: int, groups: list[Group], work: _Work) -> None:
        waiting = [g for g in groups if g.key not in self._cache]
        for group in groups:
            if group.key in self._cache:
                skip = work.done.get(group.key, 0)
                cached = self._cache[group.key]
                if skip >= len(cached):
                    continue
                rest = cached.take(slice(skip, None)) if skip else cached
                for piece in split(rest, group.size):
                    self._slice(index, group, groups, work, piece)
                self._flush(index, group, groups, work)
        if not waiting:
            return
        chunkers = {g.key: Chunker(g.rows, g.size, skip=work.done.get(g.key, 0)) for g in waiting}
        room = self.budget // 8 - sum(batch.bytes() for batch in self._cache.values())
        keepers = {g.key: _Keeper(g.rows, room // len(waiting)) for g in waiting}
        marks: list[float] = []
        count = 0
        seed_random(self.evaluator.seed)
        for number, batch in enumerate(self.subject.batches()):
            mark = _fingerprint(batch)
            marks.append(mark)
            count += len(batch)
            known = self._marks[number] if number < len(self._marks) else None
            if known is None and self._read_whole:
                raise _changed(f"there is a batch {number}, which the first pass did not have")
            if known is not None and not math.isclose(mark, known, rel_tol=1e-9):
                raise _changed(f"batch {number} holds other rows than on the first pass")
            if len(marks) > len(self._marks):
                self._marks.append(mark)
            for group in waiting:
                keepers[group.key].feed(batch)
                for piece in chunkers[group.key].feed(batch):
                    self._slice(index, group, groups, work, piece)
        for group in waiting:
            for piece in chunkers[group.key].flush():
                self._slice(index, group, groups, work, piece)
            self._flush(index, group, groups, work)
            kept = keepers[group.key].batch()
            if kept is not None:
                self._cache[group.key] = kept
        if count != self.subject.examples or len(marks) < len(self._marks):
            raise _changed(
                f"this pass gave {count} examples, the data was counted at {self.subject.examples}"
            )
        self._read_whole = True

    def _guard(self, subject: Subject) -> None:
        """A second network is left as found, too."""
        if id(subject.model) not in self._others and subject.model is not self.subject.model:
            self._others.add(id(subject.model))
            self._guarded.enter_context(left_as_found(subject.model))

    def _slice(self, index: int, group: Group, groups: list[Group], work: _Work, batch: Batch) -> None:
        """Take a slice in; it is worked on at once, or together with the next few."""
        gathered = work.gathered.setdefault(group.key, [])
        gathered.append(batch)
        held = sum(piece.bytes() for piece in gathered) if group.together > 1 else 0
        if len(gathered) >= group.together or held > self.budget // 16:
            self._flush(index, group, groups, work)

    def _flush(self, index: int, group: Group, groups: list[Group], work: _Work) -> None:
        queue = work.gathered.pop(group.key, [])
        if not queue:
            return
        if len(queue) > 1 and all(len(p) <= group.size or not p.divisible for p in queue):
            self.evaluator.rows_limit = max(group.size, 1)
            pairs = [(piece, _Collector(group.folds, work)) for piece in queue]
            try:
                self.evaluator.run_together(group.program, [(piece, c.deliver) for piece, c in pairs])
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                group.together = 1  # one after another then, and in halves where that does not help
                del pairs
            else:
                queue = []
                for piece, collector in pairs:
                    self._commit(group, work, piece, collector)
        while queue:
            piece = queue.pop(0)
            if len(piece) > group.size and piece.divisible:
                queue = [*split(piece, group.size), *queue]
                continue
            self.evaluator.rows_limit = max(group.size, 1)
            collector = _Collector(group.folds, work)
            try:
                self.evaluator.run(group.program, piece, collector.deliver)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                collector.drop()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                queue = [*self._halve(group, piece), *queue]
                continue
            self._commit(group, work, piece, collector)
        if self.states is not None and time.monotonic() - work.saved_at >= self.save_every:
            self._save(index, work, groups, complete=False)
            work.saved_at = time.monotonic()
        if self._stop.is_set():
            self._save(index, work, groups, complete=False)
            raise Stopped

    def _save(self, index: int, work: _Work, groups: list[Group], *, complete: bool) -> None:
        """Write down how far the round is. A disk that is full ends the saving and not the measuring."""
        if self.states is None:
            return
        try:
            self.states.save(
                index, work.order, work.saved(complete=complete, groups=groups, marks=self._marks)
            )
        except StoreError as error:
            self.watcher.note(f"{error}; going on, but this run cannot be resumed")
            self.states.remove()
            self.states = None

    def _commit(self, group: Group, work: _Work, piece: Batch, collector: _Collector) -> None:
        collector.commit()
        work.done[group.key] = work.done.get(group.key, 0) + len(piece)
        self.watcher.advanced(len(piece))

    def _halve(self, group: Group, piece: Batch) -> tuple[Batch, ...]:
        size = len(piece)
        if size == 1 or not piece.divisible:
            what = "one example" if size == 1 else "the whole batch, which cannot be cut,"
            raise SubjectError(
                "MT302",
                f"{what} needs more memory than there is",
                where=f"row {int(piece.rows[0])}",
                fix="skip the hungriest instruments (microtome plan shows them) or use a smaller input",
            )
        group.size = self._limit = max(size // 2, 1)
        self.watcher.note(f"memory ran out at {size} rows a slice: going on with {group.size}")
        return halves(piece)

    # -- stopping ----------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ask the run to end after the current slice."""
        self._stop.set()

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM ends the slice and saves; the second ends at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous: dict[int, Any] = {}
        owner = os.getpid()

        def handle(number: int, frame: Any) -> None:
            if (
                os.getpid() != owner
            ):  # a worker of the loader, which a terminal's Ctrl-C reaches too: the run decides
                if number == os_signal.SIGTERM:
                    os._exit(128 + number)
                return
            if self._stop.is_set():
                raise KeyboardInterrupt
            self.watcher.note("stopping after this slice; once more to stop at once")
            self._stop.set()

        try:
            for number in (os_signal.SIGINT, os_signal.SIGTERM):
                previous[number] = os_signal.signal(number, handle)
            yield
        finally:
            for caught, old in previous.items():
                os_signal.signal(caught, old)


@contextlib.contextmanager
def _quiet_collector() -> Iterator[None]:
    """Cycles are looked for among the run's own objects only: torch alone brings a million others."""
    mine = gc.get_freeze_count() == 0
    if mine:
        gc.freeze()
    try:
        yield
    finally:
        if mine:
            gc.unfreeze()


class _Work:
    """States of the folds of one round."""

    def __init__(self, order: list[Fold]) -> None:
        self.order = order
        self.states: dict[Fold, State | None] = {}
        self.failures: dict[Fold, BaseException] = {}
        self.done: dict[bytes, int] = {}
        self.spent: dict[Fold, float] = {}
        self.gathered: dict[bytes, list[Batch]] = {}
        """Slices of each group that wait to be worked on together."""
        self.saved_at = time.monotonic()

    def saved(self, *, complete: bool, groups: list[Group], marks: list[float]) -> SavedRound:
        """As it is written down."""
        return SavedRound(
            complete=complete,
            states=self.states,
            failures=self.failures,
            groups={g.key.hex(): (self.done.get(g.key, 0), g.size) for g in groups},
            marks=marks,
        )


class _Collector:
    """Lifts one slice's values; committed only when the whole slice went well."""

    def __init__(self, folds: tuple[Fold, ...], work: _Work) -> None:
        self.work = work
        self.lifted: dict[Fold, State | None] = {}
        self.failed: dict[Fold, BaseException] = {}
        self.spent: dict[Fold, float] = {}
        self.users: dict[Any, list[Fold]] = {}
        self.values: dict[Any, Any] = {}
        self.missing: dict[Fold, int] = {}
        for fold in folds:
            if fold in work.failures:
                continue
            distinct = set(fold.signals)
            self.missing[fold] = len(distinct)
            for signal in distinct:
                self.users.setdefault(signal, []).append(fold)

    def deliver(self, signal: Any, value: Any) -> None:
        """Take one signal's value in."""
        users = self.users.get(signal, ())
        later = False
        for fold in users:
            self.missing[fold] -= 1
            if self.missing[fold] == 0:
                self._lift(fold, signal, value)
            else:
                later = True
        if later:
            self.values[signal] = value

    def _lift(self, fold: Fold, signal: Any, value: Any) -> None:
        values = [value if s == signal else self.values[s] for s in fold.signals]
        failure = next((v for v in values if isinstance(v, Failure)), None)
        if failure is not None:
            self.failed[fold] = failure.error
            return
        if any(v is None for v in values):
            self.failed[fold] = Refusal("the data has no targets")
            return
        began = time.perf_counter()
        try:
            self.lifted[fold] = fold.lift(*values)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self.failed[fold] = error
        self.spent[fold] = time.perf_counter() - began

    def drop(self) -> None:
        """Forget the slice."""
        self.lifted.clear()
        self.values.clear()

    def commit(self) -> None:
        """Join the slice's states to the round's."""
        work = self.work
        for fold, error in self.failed.items():
            work.failures[fold] = error
            work.states.pop(fold, None)
        for fold, state in self.lifted.items():
            if fold in work.failures:  # on a slice that was worked on together with this one
                continue
            began = time.perf_counter()
            try:
                work.states[fold] = fold.join(work.states.get(fold), state)
            except Exception as error:
                # Half of the slice is joined by now: memory that runs out here cannot be tried again.
                work.failures[fold] = error
                work.states.pop(fold, None)
            spent = self.spent.get(fold, 0.0) + time.perf_counter() - began
            work.spent[fold] = work.spent.get(fold, 0.0) + spent


class _Keeper:
    """Keeps the rows of a group for later rounds while they are few."""

    def __init__(self, rows: Any, limit: int) -> None:
        self._picker = Chunker(rows, 1 << 60)
        self._parts: list[Batch] = []
        self._bytes = 0
        self._limit = limit
        self._gone = False

    def feed(self, batch: Batch) -> None:
        """See one batch of the loader."""
        if self._gone:
            return
        part = self._picker._mine(batch)
        if part is None or not len(part):
            return
        self._bytes += part.bytes() if part.divisible else 0
        if self._bytes > self._limit or (self._parts and not joinable(self._parts[-1], part)):
            self._gone = True
            self._parts = []
            return
        self._parts.append(part)

    def batch(self) -> Batch | None:
        """All rows in one batch, when they were few enough."""
        if self._gone or not self._parts:
            return None
        kept, self._parts = concatenate(self._parts), []
        return kept


def _changed(what: str) -> SubjectError:
    return SubjectError(
        "MT210", what, fix="give data that comes in the same order on every pass (no generator of its own)"
    )


def _fingerprint(batch: Batch) -> float:
    total = float(len(batch))
    for leaf in [*batch.leaves(), batch.targets]:
        tensor = leaf if isinstance(leaf, torch.Tensor) else getattr(leaf, "x", None)
        if isinstance(tensor, torch.Tensor) and tensor.numel():
            # Strided, so that reading stays cheap; position-dependent, so that order matters.
            sample = tensor.reshape(-1)[:: max(tensor.numel() // 4096, 1)].double()
            total += float(
                (sample * torch.linspace(1, 2, len(sample), dtype=torch.float64, device=sample.device)).sum()
            )
    return total


def run_instruments(
    subject: Subject, instruments: Mapping[str, Instrument], **options: Any
) -> dict[str, Finding]:
    """Run instruments on a subject and return their findings; see :class:`Run` for the options."""
    options.setdefault("budget", 2 << 30)
    return Run(subject, instruments, **options).execute()
