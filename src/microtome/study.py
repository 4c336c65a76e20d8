"""A study tests one paper's claim: a hypothesis that can fail, measured at two scales, and a recorded verdict.

The protocol is that of falsifiable interpretability (Leavitt & Morcos 2020): the claim, what would be seen if it were
false, the control and the size of effect that counts are written down before anything is measured.

``microtome study run SLUG`` measures at the small scale, which takes seconds and decides nothing;
``microtome study run SLUG --scale full --record`` gives the verdict and records it in ``studies/records/<slug>.json``.
The state of a paper, and the atlas, are read from those records alone.
"""

from __future__ import annotations

import datetime
import importlib
import inspect
import json
import math
import platform
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from microtome.errors import UsageError, nearest
from microtome.finding import Figure

Outcome = Literal["reproduced", "partly", "not reproduced", "inconclusive"]
STUDIES = Path(__file__).parent / "studies"
RECORDS = STUDIES / "records"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a study found.

    Attributes:
        numbers: every figure that was measured, by name.
        verdict: what follows for the claim.
        decided_by: the sentence that says which number decided, against which threshold.
        figure: what is worth looking at, as made by :mod:`microtome.figures`.
        conditions: what differs from the paper, and what a reader has to know.
    """

    numbers: Mapping[str, float]
    verdict: Outcome
    decided_by: str
    figure: Figure | None = None
    conditions: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Study:
    """One paper's claim and how it is tested.

    Attributes:
        paper: slug.
        claim: the claim in our words, as a hypothesis that can fail.
        null: what is seen if it is false.
        control: what must not show the effect, or what must be held equal.
        threshold: the size of effect that counts, fixed before the run.
        uses: import paths of the leaves it rests on; the atlas shows them.
        example: a few lines of use, for the atlas.
        relates: slug of another paper that this one contradicts, evaluates or rests on -> how, in a sentence.
        measure: (smoke, seed) -> what was found; smoke runs take seconds and decide nothing. ``seed`` shifts every
            seed, so that a run can be repeated with others; a study that does not take it has no random part
            that could be drawn otherwise.
    """

    paper: str
    claim: str
    null: str
    control: str
    threshold: str
    measure: Callable[..., Measured]
    uses: tuple[str, ...] = ()
    example: str = ""
    relates: Mapping[str, str] = field(default_factory=dict)

    @property
    def reseeds(self) -> bool:
        """Whether it can be repeated with other seeds."""
        return "seed" in inspect.signature(self.measure).parameters

    def run(self, *, smoke: bool, seed: int = 0) -> Measured:
        """Measure.

        Raises:
            UsageError: MT421 when another seed is asked of a study that takes none.
        """
        if self.reseeds:
            return self.measure(smoke, seed=seed)
        if seed:
            raise UsageError("MT421", f"the study of '{self.paper}' takes no seed", fix="leave --seed out")
        return self.measure(smoke)


@dataclass(frozen=True)
class Run:
    """A study that was run: what is recorded."""

    paper: str
    claim: str
    null: str
    control: str
    threshold: str
    numbers: Mapping[str, float]
    verdict: str
    decided_by: str
    command: str
    seconds: float
    threads: int
    seed: int
    date: str
    versions: Mapping[str, str]
    conditions: tuple[str, ...] = ()
    figure: Mapping[str, Any] | None = None
    repeats: tuple[Mapping[str, Any], ...] = field(default=())
    """(seed, verdict, decided_by, seconds) of runs with other seeds."""


def rows_of(numbers: Mapping[str, float], pattern: str) -> list[dict[str, Any]]:
    """Rows for a figure from the numbers whose names follow a pattern: ``"{kind}, deletion, {map}"``.

    A row has what stood in the braces (a number where it reads as one), the number as "value", and "low" and "high"
    where the names followed by ", low" and ", high" are there too.
    """
    parts = re.split(r"\{(\w+)\}", pattern)
    pieces = [re.escape(p) if i % 2 == 0 else f"(?P<{p}>[^,:]+)" for i, p in enumerate(parts)]
    matcher, found = re.compile("".join(pieces)), []
    for name, value in numbers.items():
        match = matcher.fullmatch(name)
        if match is None:
            continue
        row: dict[str, Any] = {}
        for key, text in match.groupdict().items():
            try:
                row[key] = float(text)
            except ValueError:
                row[key] = text
        row["value"] = value
        row |= {end: numbers[f"{name}, {end}"] for end in ("low", "high") if f"{name}, {end}" in numbers}
        found.append(row)
    return found


def run(study: Study, *, smoke: bool, seed: int = 0) -> Run:
    """Run a study.

    Raises:
        ValueError: when a number is not finite, for nothing follows from it.
    """
    import torch

    began = time.perf_counter()
    measured = study.run(smoke=smoke, seed=seed)
    bad = [name for name, value in measured.numbers.items() if not math.isfinite(value)]
    if bad or not measured.numbers:
        raise ValueError(
            f"the study of '{study.paper}' measured numbers that are not finite: {', '.join(bad)}"
        )
    seconds = round(time.perf_counter() - began, 1)
    shift = f" --seed {seed}" if seed else ""
    return Run(
        paper=study.paper,
        claim=study.claim,
        null=study.null,
        control=study.control,
        threshold=study.threshold,
        numbers={name: float(value) for name, value in measured.numbers.items()},
        verdict=measured.verdict,
        decided_by=measured.decided_by,
        command=f"microtome study run {study.paper} --scale {'smoke' if smoke else 'full'}{shift}",
        seconds=seconds,
        threads=torch.get_num_threads(),
        seed=seed,
        date=datetime.date.today().isoformat(),
        versions={"python": platform.python_version(), "torch": torch.__version__},
        conditions=measured.conditions,
        figure=None if measured.figure is None else msgspec.to_builtins(measured.figure),
    )


def as_json(found: Run) -> str:
    """The record, as text; significant digits are kept to ten, which is more than any of them has."""

    def rounded(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.10g}")
        if isinstance(value, Mapping):
            return {k: rounded(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [rounded(v) for v in value]
        return value

    return json.dumps(rounded(asdict(found)), indent=1, allow_nan=False)


def record(found: Mapping[str, Any]) -> Path:
    """Write a full run, as :func:`as_json` gives it, where the atlas and ``microtome papers`` read it."""
    RECORDS.mkdir(exist_ok=True)
    path = RECORDS / f"{found['paper']}.json"
    path.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def study_names() -> dict[str, str]:
    """Slug -> module of every study, ours and those of plug-ins, found by walking the tree."""
    from importlib.metadata import entry_points

    found = {
        path.stem.replace("_", "-"): f"microtome.studies.{path.parent.name}.{path.stem}"
        for path in sorted(STUDIES.glob("*/*.py"))
        if not path.stem.startswith("_")
    }
    found.update({point.name: point.value for point in entry_points(group="microtome.studies")})
    return found


def components() -> dict[str, tuple[str, ...]]:
    """Slug -> the import paths its study rests on, read off our own files without importing them (and torch)."""
    import ast

    found = {}
    for slug, module in study_names().items():
        path = STUDIES.parent.parent / (module.replace(".", "/") + ".py")
        if not module.startswith("microtome.studies.") or not path.is_file():
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "uses":
                found[slug] = tuple(ast.literal_eval(node.value))
    return found


def study(slug: str) -> Study:
    """Import one study.

    Raises:
        UsageError: MT420 for an unknown slug, with the nearest; MT422 when a plug-in is broken.
    """
    names = study_names()
    if slug not in names:
        raise UsageError(
            "MT420", f"no study is called '{slug}'", fix=nearest(slug, names) or "microtome study list"
        )
    module, _, attribute = names[slug].partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute or "STUDY")
    except Exception as error:
        if module.startswith("microtome."):
            raise
        raise UsageError("MT422", f"the plug-in study '{slug}' is broken: {error}", where=module) from error
    if not isinstance(found, Study):
        raise UsageError("MT422", f"'{names[slug]}' is no Study", where=slug)
    return found


def records() -> dict[str, dict[str, Any]]:
    """Every recorded full run, by slug."""
    found = (json.loads(path.read_text(encoding="utf-8")) for path in sorted(RECORDS.glob("*.json")))
    absent: dict[str, Any] = {"conditions": [], "figure": None, "repeats": []}  # older records lack them
    return {each["paper"]: absent | each for each in found}


def recorded() -> dict[str, str]:
    """The verdict of every paper whose study was run in full, by slug."""
    return {slug: each["verdict"] for slug, each in records().items()}
