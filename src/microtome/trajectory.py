"""Training as a subject: every checkpoint of a folder examined by the same instruments, each answer a curve."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch

from microtome.checkpoints import fit_weights, read_weights
from microtome.errors import UsageError
from microtome.examination import as_subject, examine
from microtome.figures import line
from microtome.finding import Examination, Finding, Quantity, Table
from microtome.population import Population, Recording

IN_FOLDERS = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")


def checkpoints(
    folder: str | Path,
    model: torch.nn.Module,
    member: int = 0,
    *,
    trust: bool = False,
    told: Callable[[str], None] = lambda said: None,
) -> list[tuple[int, Callable[[], torch.nn.Module]]]:
    """(step, how to load the network) of every checkpoint, by step.

    A folder that :class:`microtome.population.Recorder` wrote, or files of weights with the step in their names
    (``step_200.safetensors``, ``epoch-3.pt``, ``epoch_3_loss_0.53.pt``), or folders that hold one, as Hugging Face's
    trainer writes them (``checkpoint-200/model.safetensors``). Others, such as ``best.pt``, are left out, and ``told``.

    Raises:
        UsageError: MT441 for a folder without checkpoints, MT442 for a member or a step that is not there or unclear.
    """
    where = Path(folder).expanduser()
    if not where.is_dir():
        raise UsageError(
            "MT441", "there is no such folder of checkpoints", where=str(where), fix="give a folder"
        )
    if (where / "recording.json").is_file():
        return _recorded(where, model, member)
    found, unnumbered = _numbered(where)
    if unnumbered and not found:
        raise UsageError(
            "MT442",
            "the step cannot be read off the name of a checkpoint",
            where=str(unnumbered[0]),
            fix="name it step_200",
        )
    if not found:
        fix = f"files named step_200.safetensors, or folders named so; read are {', '.join(SUFFIXES)}"
        raise UsageError("MT441", "the folder holds no checkpoints", where=str(where), fix=fix)
    if unnumbered:
        told(f"left out, for no step is in the name: {', '.join(path.name for path in unnumbered)}")

    def loader(path: Path) -> Callable[[], torch.nn.Module]:
        def load() -> torch.nn.Module:
            made = copy.deepcopy(model)
            fit_weights(made, read_weights(path, trust=trust).tensors, source=path.name)
            return made.eval()

        return load

    return [(step, loader(path)) for step, path in sorted(found.items())]


def _numbered(where: Path) -> tuple[dict[int, Path], list[Path]]:
    """Checkpoints by step, and those without one in the name.

    Raises:
        UsageError: MT442, two of the same step.
    """
    found: dict[int, Path] = {}
    unnumbered: list[Path] = []
    for path in sorted(where.iterdir()):
        inside = next((path / name for name in IN_FOLDERS if (path / name).is_file()), None)
        if inside is None and (path.suffix not in SUFFIXES or not path.is_file()):
            continue
        step = step_of(path.name if inside else path.stem)
        if step is None:
            unnumbered.append(path)
        elif step in found:
            raise UsageError(
                "MT442",
                f"the step cannot be read off the name of a checkpoint: {found[step].name} has it too",
                where=str(path),
                fix="name it step_200, and keep those of another run in a folder of their own",
            )
        else:
            found[step] = inside or path
    return found, unnumbered


def step_of(name: str) -> int | None:
    """200 of ``epoch1-step_200``, 3 of ``epoch_3_loss_0.53``, 20 of ``resnet18-20``; None without a whole number."""
    for word in (r"step|iter(?:ation)?|checkpoint|ckpt", "epoch"):
        after = re.findall(rf"(?:{word})s?[^0-9a-z]{{0,2}}(\d+)(?!\d|\.\d)", name, re.IGNORECASE)
        if after:
            return int(after[-1])
    numbers = re.findall(r"(?<![\d.])\d+(?!\d|\.\d)", name)  # a loss is no step
    return int(numbers[-1]) if numbers else None


def _recorded(
    where: Path, model: torch.nn.Module, member: int
) -> list[tuple[int, Callable[[], torch.nn.Module]]]:
    recording = Recording.open(where, Population([model]))
    if not recording.steps:
        raise UsageError(
            "MT441", "the recording holds no step yet", where=str(where), fix="let training go on"
        )
    members = len(recording.population(recording.steps[0]))
    if not 0 <= member < members:
        raise UsageError("MT442", f"there is no member {member}", where=str(where), fix=f"0 to {members - 1}")

    def loader(step: int) -> Callable[[], torch.nn.Module]:
        return lambda: recording.population(step).member(member).eval()

    return [(step, loader(step)) for step in sorted(recording.steps)]


def examine_checkpoints(
    model: torch.nn.Module,
    data: Iterable[Any],
    folder: str | Path,
    *,
    member: int = 0,
    trust: bool = False,
    store: str | None = None,
    command: str = "",
    told: Callable[[str], None] = lambda said: None,
    subject_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Examination:
    """Examine every checkpoint; each finding is the last one's, with its course over training.

    Args:
        model: a network of the architecture; left as found.
        data: batches that can be gone through again.
        member: which member of a recorded population.
        options: of :func:`microtome.examine` (only, skip, options, memory, seed, watcher).

    Returns:
        An examination whose findings carry a figure and a table "trajectory". Ctrl-C keeps the checkpoints that are
        finished and marks it stopped; with ``store`` each is stored as it ends, which ``kill`` does not undo.
    """
    began = time.perf_counter()
    steps: list[int] = []
    exams: list[Examination] = []
    stopped = False
    for step, load in checkpoints(folder, model, member, trust=trust, told=told):
        told(f"checkpoint {step}")
        try:
            subject = as_subject(load(), data, dict(subject_options or {}))
            exam = examine(subject, calibration="none", **options)
        except BaseException:
            if exams and store is not None:
                _joined(steps, exams, command, time.perf_counter() - began, "stopped").save(store or None)
            raise
        if exam.status == "stopped":
            stopped = True
            break
        steps.append(step)
        exams.append(exam)
        if store is not None:  # each as it ends: what is measured outlives a kill
            partial = _joined(steps, exams, command, time.perf_counter() - began, "running")
            partial.save(store or None)
    if not exams:
        raise KeyboardInterrupt
    made = _joined(
        steps, exams, command, time.perf_counter() - began, "stopped" if stopped else exams[-1].status
    )
    if store is not None:
        made.save(store or None)
    return made


def _joined(
    steps: Sequence[int],
    exams: Sequence[Examination],
    command: str,
    seconds: float,
    status: Literal["complete", "partial", "stopped", "running"],
) -> Examination:
    """The examinations of all checkpoints so far as one, under the first one's name."""
    last = exams[-1]
    return msgspec.structs.replace(
        last,
        id=exams[0].id,
        findings={name: trajectory(steps, [exam.findings[name] for exam in exams]) for name in last.findings},
        command=command,
        seconds=seconds,
        status=status,
        subject={**last.subject, "checkpoints": f"{len(steps)}, step {steps[0]} to {steps[-1]}"},
    )


def trajectory(steps: Sequence[int], findings: Sequence[Finding]) -> Finding:
    """One instrument's findings at several steps as one: the last, and how it came to that."""
    measured = [(s, f) for s, f in zip(steps, findings, strict=True) if f.status == "measured"]
    last = findings[-1]
    if last.status != "measured" or len(measured) < 2:
        return last
    key = last.headline
    known = [(s, f.quantities[key]) for s, f in measured if key in f.quantities]
    first, unit = known[0][1], last.quantities[key].unit
    names = list(last.quantities)
    rows = tuple(
        (s, *(f.quantities[n].value if n in f.quantities else None for n in names), f.grade)
        for s, f in measured
    )
    change = Quantity(
        value=last.quantities[key].value - first.value, unit=unit, how=f"since step {known[0][0]}"
    )
    points: list[dict[str, Any]] = [{"step": s, key: q.value, "low": q.low, "high": q.high} for s, q in known]
    bounded = all(q.low is not None and q.high is not None for _, q in known)
    figure = line(
        f"{key} over training",
        points if bounded else [{"step": p["step"], key: p[key]} for p in points],
        x="step",
        y=key,
        y_unit="" if unit == "1" else unit,
        band=("low", "high") if bounded else None,
    )
    missing = [s for s, f in zip(steps, findings, strict=True) if f.status != "measured"]
    caveats = (f"not measured at steps {', '.join(map(str, missing))}",) if missing else ()
    return msgspec.structs.replace(
        last,
        summary=f"From {first.text()} at step {known[0][0]} to {last.quantities[key].text()} at step {known[-1][0]}. "
        + last.summary,
        quantities=last.quantities | {f"change of {key}": change},
        figures={"trajectory": figure} | last.figures,
        tables={
            "trajectory": Table(
                columns=("step", *names, "grade"), rows=rows, caption="Every quantity at every checkpoint"
            )
        }
        | last.tables,
        caveats=(*last.caveats, *caveats),
        seconds=sum(f.seconds for _, f in measured),
    )


__all__ = ["checkpoints", "examine_checkpoints", "trajectory"]
