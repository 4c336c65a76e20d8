"""The main verb: many instruments over one subject, in shared passes."""

from __future__ import annotations

import datetime
import itertools
import platform
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch

from microtome.calibration import readings
from microtome.errors import StoreError, UsageError
from microtome.finding import Examination, Finding
from microtome.instrument import Instrument
from microtome.passes import Plan, Run, make_plan
from microtome.passes.memory import parse_bytes
from microtome.progress import Silent, Watcher, Written
from microtome.registry import instrument, instrument_names, select
from microtome.subject import Subject

if TYPE_CHECKING:
    from microtome.store import Store


UNSTORED = "not stored"
"""Key of an examination's plan: why its findings are in memory only."""


@contextmanager
def at_home(model: torch.nn.Module | Subject, options: Mapping[str, Any]) -> Iterator[None]:
    """A network that is moved to another device to be measured is brought back where it was."""
    if isinstance(model, Subject) or options.get("device") is None or not isinstance(model, torch.nn.Module):
        yield
        return
    homes = {tensor.device for tensor in itertools.chain(model.parameters(), model.buffers())}
    try:
        yield
    finally:
        if len(homes) == 1:
            model.to(homes.pop())


def as_subject(
    model: torch.nn.Module | Subject, data: Iterable[Any] | None, options: Mapping[str, Any]
) -> Subject:
    """Build the subject, or take the one given.

    Raises:
        UsageError: MT129 when data is missing or options are given beside a finished subject.
    """
    if isinstance(model, Subject):
        if data is not None or any(v is not None for v in options.values()):
            raise UsageError("MT129", "data and subject options belong to the Subject that was given")
        return model
    if data is None:
        raise UsageError("MT129", "a model needs data", fix="examine(model, loader): any iterable of batches")
    return Subject(model, data, **{k: v for k, v in options.items() if v is not None})


def configure(
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    extra: Sequence[Instrument] = (),
) -> dict[str, Instrument]:
    """The chosen instruments with their options, by name, in reading order.

    Raises:
        UsageError: for unknown instruments or options, naming the nearest.
    """
    names = [] if extra and not only else list(select(only, skip))
    given: dict[str, dict[str, Any]] = {}
    for name, values in (options or {}).items():
        full = instrument(name).name()
        given[full] = dict(values)
    unused = set(given) - set(names)
    if unused:
        raise UsageError(
            "MT125", f"options are given for '{sorted(unused)[0]}', which is not among the chosen instruments"
        )
    chosen: dict[str, Instrument] = {name: instrument(name).configured(given.get(name, {})) for name in names}
    for one in extra:
        chosen[one.name()] = one
    return chosen


def plan(
    model: torch.nn.Module | Subject,
    data: Iterable[Any] | None = None,
    *,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    memory: str | int = "2GiB",
    **subject_options: Any,
) -> Plan:
    """What :func:`examine` would run: passes, signals, who asks for each, memory and time. Runs nothing."""
    with at_home(model, subject_options):
        subject = as_subject(model, data, subject_options)
        return make_plan(subject, configure(only, skip, options), parse_bytes(memory))


def examine(
    model: torch.nn.Module | Subject,
    data: Iterable[Any] | None = None,
    *,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    instruments: Sequence[Instrument] = (),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    memory: str | int = "2GiB",
    seed: int = 0,
    store: str | None = None,
    watcher: Watcher | None = None,
    save_every: float = 20.0,
    command: str = "",
    calibration: Literal["take", "known", "none"] = "known",
    **subject_options: Any,
) -> Examination:
    """Examine a network: every chosen instrument, in as few passes over the data as can be.

    Args:
        model: an ``nn.Module`` (measured in place, left as found) or a prepared :class:`Subject`.
        data: any iterable of batches.
        only, skip: patterns over ``room/method`` ("reliability/*", "calibration").
        instruments: ready-made instruments of your own, beside or instead of the registered ones.
        options: instrument -> {option: value}.
        memory: budget for slices.
        store: where findings go as soon as they are there; None keeps the result in memory only.
        watcher: is told what happens; see :mod:`microtome.progress`.
        save_every: seconds between two savings of running folds (with a store).
        calibration: how well each instrument reads its specimens, for the report: "take" measures what is
            not known yet for this version of the code (kept for the next time), "known" never waits.
        subject_options: see :class:`Subject` (task, bounds, inputs, target, outputs, device, ...).

    Returns:
        The examination. Ctrl-C ends it early with ``status == "stopped"``: what is finished is kept, the
        rest is marked missing and can be resumed when there is a store.
    """
    only = (only,) if isinstance(only, str) else only
    skip = (skip,) if isinstance(skip, str) else skip
    chosen = configure(only, skip, options, instruments)
    budget = parse_bytes(memory)
    with at_home(model, subject_options):
        subject = as_subject(model, data, subject_options)
        exam = Examination(
            id=_new_id(),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            subject=subject.describe(),
            findings={},
            seed=seed,
            status="running",
            command=command,
            versions=versions(),
            plan={
                "request": {
                    "only": list(only),
                    "skip": list(skip),
                    "options": dict(options or {}),
                    "memory": budget,
                }
            },
        )
        return _execute(exam, subject, chosen, budget, store, watcher, save_every, calibration)


def resume(
    run: str,
    model: torch.nn.Module | Subject,
    data: Iterable[Any] | None = None,
    *,
    store: str | None = None,
    watcher: Watcher | None = None,
    save_every: float = 20.0,
    calibration: Literal["take", "known", "none"] = "known",
    **subject_options: Any,
) -> Examination:
    """Go on with an examination that was stopped or killed; ends with the findings of an undisturbed run.

    Raises:
        UsageError: MT139 when it is complete, or when model or data are not the ones it began with.
    """
    from microtome.store import open_store

    with open_store(store) as opened:
        exam = opened.load(run)
    if exam.status == "complete":
        raise UsageError("MT139", f"run {exam.id} is complete; there is nothing to resume")
    with at_home(model, subject_options):
        subject = as_subject(model, data, subject_options)
        now = subject.describe()
        for key, what in (
            ("model_hash", "the weights"),
            ("examples", "the number of examples"),
            ("task", "the task"),
        ):
            if now[key] != exam.subject[key]:
                raise UsageError(
                    "MT139",
                    f"{what} differ from those run {exam.id} began with",
                    where=f"{exam.subject[key]} then, {now[key]} now",
                )
        request = exam.plan["request"]
        chosen = configure(request["only"], request["skip"], request["options"])
        exam.findings = {}
        exam.status = "running"
        return _execute(
            exam, subject, chosen, request["memory"], store or "", watcher, save_every, calibration
        )


def _execute(
    exam: Examination,
    subject: Subject,
    chosen: Mapping[str, Instrument],
    budget: int,
    store: str | None,
    watcher: Watcher | None,
    save_every: float,
    calibration: Literal["take", "known", "none"],
) -> Examination:
    from contextlib import ExitStack, suppress

    began = time.perf_counter()
    with ExitStack() as stack:
        opened: Store | None = None
        folder = None
        if store is not None:
            from microtome.store import open_store

            opened = stack.enter_context(open_store(store or None))
            opened.begin(exam)
            folder = opened.run_folder(exam.id)
            watcher = Written(watcher or Silent(), folder, len(chosen))

        def kept(save: Callable[..., object], *what: object) -> None:
            """Store it. Where the disk is full the examination goes on: it is kept in memory, and says so."""
            if UNSTORED in exam.plan:
                return
            try:
                save(*what)
            except StoreError as error:
                if error.code != "MT130":
                    raise
                exam.plan[UNSTORED] = str(error)
                if watcher is not None:
                    watcher.note(f"{error}; going on, what is found is kept in memory only")

        def found(finding: Finding) -> None:
            if opened is not None:
                kept(opened.save_finding, exam.id, finding)

        run = Run(
            subject, chosen, budget=budget, seed=exam.seed, watcher=watcher, folder=folder,
            save_every=save_every, found=found,
        )  # fmt: skip
        try:
            exam.findings = run.execute()
        except BaseException:
            if opened is not None:
                with suppress(StoreError):  # what went wrong is told, not that it cannot be noted
                    opened.finish(exam.id, "partial")
            raise
        exam.seconds = time.perf_counter() - began
        exam.plan = {**exam.plan, "rounds": run.history}
        if calibration != "none" and not run.stopped:
            registered = [name for name in exam.findings if name in instrument_names()]
            exam.calibration = readings(registered, watcher, take=calibration == "take")
        failed = any(f.status == "failed" for f in exam.findings.values())
        exam.status = "stopped" if run.stopped else "partial" if failed else "complete"
        if opened is not None:
            kept(opened.save, exam)
            if UNSTORED in exam.plan:
                with suppress(StoreError):
                    opened.finish(exam.id, "partial")
    return exam


def _new_id() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(2)


def versions() -> dict[str, str]:
    """Versions that can change a measurement."""
    import numpy

    import microtome

    return {
        "microtome": microtome.__version__,
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "threads": str(torch.get_num_threads()),
    }
