"""``microtome examine`` and ``microtome plan``."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from microtome.cli.conditions import Node, check, full_name, parse, terms
from microtome.cli.output import say, show, show_json
from microtome.cli.request import DEFAULT_CHOICE, Choice, Request
from microtome.cli.subjects import DEFAULT_SUBJECT, REFERENCE, SubjectOptions, Target, load_subject
from microtome.errors import MicrotomeError, UsageError

if TYPE_CHECKING:
    from microtome.finding import Examination

Store = Annotated[
    str | None,
    Parameter(
        env_var="MICROTOME_STORE",
        help="Where runs are kept: a folder, file or database URL. Default: the per-user data folder.",
    ),
]
Json = Annotated[bool, Parameter(help="Print JSON, alone on stdout.")]
# ------------------------------------------------------------------------------------------------ verbs


def examine(
    target: Target = None,
    /,
    *,
    subject: SubjectOptions = DEFAULT_SUBJECT,
    choice: Choice = DEFAULT_CHOICE,
    store: Store = None,
    report: Annotated[str | None, Parameter(help="Write the report to this HTML file.")] = None,
    fail_on: Annotated[
        Literal["watch", "alarm"] | None, Parameter(help="Exit with 1 if any finding is graded so, or worse.")
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        Parameter(
            help="Exit with 1 if this holds: 'reliability/calibration > 0.05 or accuracy < 0.9'; repeat."
        ),
    ] = None,
    resume: Annotated[
        str | None, Parameter(help="Continue a run that was stopped or killed: its id, or 'latest'.")
    ] = None,
    checkpoints: Annotated[
        str | None,
        Parameter(
            help="Examine each checkpoint of this folder: a recording, or files named by step; answers are curves."
        ),
    ] = None,
    member: Annotated[int, Parameter(help="Which member of a recorded population.")] = 0,
    calibrate: Annotated[
        bool,
        Parameter(
            negative="--no-calibrate",
            help="Also read the instruments on specimens, where that is not known yet, for the report.",
        ),
    ] = True,
    json: Json = False,
) -> int:
    """Examine a network: all its instruments, in as few passes over the data as they share.

    Without a target, a small CNN is trained on embedded scans of digits and examined.
    Ctrl-C ends the pass and keeps all that is finished; the run can be continued with --resume.
    """
    conditions = [parse(text) for text in fail_if or ()]
    writable_report(report)
    with progress() as watcher:
        if resume is not None:
            _refuse_with_resume(target, subject, choice, checkpoints)
            exam = _resumed(resume, store, conditions, watcher, calibrate)
        else:
            along = None if checkpoints is None else (checkpoints, member)
            exam = _examined(target, subject, choice, store, conditions, watcher, calibrate, along)
    return conclude(exam, conditions, fail_on=fail_on, report=report, json=json, store=store)


def plan(
    target: Target = None,
    /,
    *,
    subject: SubjectOptions = DEFAULT_SUBJECT,
    choice: Choice = DEFAULT_CHOICE,
    json: Json = False,
) -> int:
    """Show what an examination would do: passes, signals, who asks for each, memory and time. Runs nothing.

    The network and one batch are loaded to look at them.
    """
    request = Request.read(choice)
    from microtome.examination import plan as make

    model, data, options = load_subject(target, subject, choice.seed)
    made = make(model, data, **request.keywords(), **options)
    if json:
        show_json(made.as_dict())
    else:
        show(made.text())
    return 0


# ------------------------------------------------------------------------------------------------ runs


def progress() -> Any:
    """The watcher for this terminal, as a context."""
    from microtome.cli.progress import for_terminal

    return for_terminal()


def _examined(
    target: str | None,
    subject: SubjectOptions,
    choice: Choice,
    store: str | None,
    conditions: Sequence[Node],
    watcher: Any,
    calibrate: bool,
    checkpoints: tuple[str, int] | None,
) -> Examination:
    """Examine the network, or with ``checkpoints`` (folder, member) each of those in the folder."""
    request = Request.read(choice)
    _check_names(conditions, request.names)
    model, data, options = load_subject(target, subject, choice.seed)
    asked = request.keywords() | {
        "seed": request.seed,
        "store": store or "",  # None would keep the run in memory only
        "watcher": watcher,
        "command": _command(),
    }
    if checkpoints is None:
        from microtome.examination import examine as run

        return run(model, data, **asked, calibration="take" if calibrate else "none", **options)
    from microtome.trajectory import examine_checkpoints

    folder, member = checkpoints
    trust = subject.trust_pickle
    return examine_checkpoints(
        model, data, folder, member=member, trust=trust, told=say, subject_options=options, **asked
    )


def _command() -> str:
    return shlex.join(["microtome", *sys.argv[1:]])


def _refuse_with_resume(
    target: str | None, subject: SubjectOptions, choice: Choice, checkpoints: str | None
) -> None:
    # Memory and device may come from the environment, which says nothing about this run.
    subject, choice = replace(subject, device=None), replace(choice, memory=DEFAULT_CHOICE.memory)
    given = target is not None or checkpoints is not None
    if given or subject != DEFAULT_SUBJECT or choice != DEFAULT_CHOICE:
        raise UsageError(
            "MT117",
            "--resume continues a run as it was begun",
            where="command line",
            fix="leave out the target and the options about network, data and instruments",
        )


def _resumed(
    run_id: str, store: str | None, conditions: Sequence[Node], watcher: Any, calibrate: bool
) -> Examination:
    from microtome.registry import select
    from microtome.store import open_store

    with open_store(store, create=False) as opened:
        begun = opened.load(run_id)
    request = begun.plan.get("request", {})
    _check_names(conditions, select(request.get("only", ()), request.get("skip", ())))
    source = begun.subject.get("source") or {}
    if "target" not in source:
        raise UsageError(
            "MT117",
            f"run {begun.id} was not begun from the command line",
            where=begun.command or "Python",
            fix=f"continue it from Python: microtome.resume('{begun.id}', model, data)",
        )
    fields = SubjectOptions.__dataclass_fields__
    options = SubjectOptions(**{key: value for key, value in source.items() if key in fields})
    target = None if source["target"] == REFERENCE else source["target"]
    model, data, keywords = load_subject(target, options, int(source.get("seed", begun.seed)))
    from microtome.examination import resume

    taken: Literal["take", "none"] = "take" if calibrate else "none"
    return resume(begun.id, model, data, store=store, watcher=watcher, calibration=taken, **keywords)


def _check_names(conditions: Sequence[Node], names: Sequence[str]) -> None:
    """An unknown name fails now, not after an hour."""
    for condition in conditions:
        for term in terms(condition):
            full_name(term.name, names)


# ------------------------------------------------------------------------------------------------ endings


def writable_report(path: str | None) -> None:
    """Refuse a report that cannot be written before anything is measured.

    Raises:
        UsageError: MT118.
    """
    if path is None:
        return
    folder = Path(path).expanduser().resolve().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        problem = "cannot be written to" if folder.is_dir() else "does not exist"
        raise UsageError(
            "MT118", f"the folder of the report {problem}", where=str(folder), fix="choose another --report"
        )
    if Path(path).is_dir():
        raise UsageError(
            "MT118", "--report names a folder", where=path, fix=f"write --report {path.rstrip('/')}/out.html"
        )


def conclude(
    exam: Examination,
    conditions: Sequence[Node],
    *,
    fail_on: str | None,
    report: str | None,
    json: bool,
    store: str | None,
) -> int:
    """Print the results, write the report, judge; return the exit status."""
    from microtome.finding import GRADE_ORDER, encode_json

    tell = say if json else show
    if json:
        show_json(encode_json(exam))
    else:
        show(exam.table())
    status = 0
    if report is not None:
        try:
            tell(f"report  {exam.report(str(Path(report).expanduser()))}")
        except (OSError, MicrotomeError) as error:
            say(f"microtome: MT118 the report could not be written: {error}; the run is stored")
            status = 2
    unstored = exam.plan.get("not stored")
    if unstored:
        say(f"microtome: {unstored}; the findings above are not stored")
        status = 2
    else:
        tell(f"run     {exam.id}   (microtome view opens it in the browser)")

    failed = [finding for finding in exam if finding.status == "failed"]
    if failed:
        status = status or 4
        for finding in failed:
            say(f"failed: {finding.instrument}: {finding.reason}")
    graded: list[str] = []
    if fail_on is not None:
        graded = [f.instrument for f in exam if GRADE_ORDER[f.grade] >= GRADE_ORDER[fail_on]]
        if graded:
            say(f"--fail-on {fail_on}: {', '.join(graded)}")
    broken = False
    for condition in conditions:
        verdict = check(condition, exam)
        broken |= verdict.failed
        for reason in verdict.reasons:
            say(f"--fail-if: {reason}")
    if broken or graded:
        status = 1
    if exam.status == "stopped":
        missing = [finding.instrument for finding in exam if finding.status == "missing"]
        if missing:
            say(f"stopped; not finished: {', '.join(missing)}")
        where = f" --store {shlex.quote(store)}" if store else ""
        say(f"continue with: microtome examine --resume {exam.id}{where}")
        status = 130
    return status
