"""Several examinations side by side: against the first, which differences are larger than noise; and courses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from microtome.comparison import Comparison, Difference, compare
from microtome.finding import Examination, Finding, format_number
from microtome.report import marks
from microtome.report.html import ROOMS
from microtome.report.layers import layers
from microtome.report.text import number_text

MOST = 24
"""Examinations that are set side by side at once."""
FEW = 5
"""As many have a column each; more are scrubbed through."""
MOST_FLIPS = 60
MOST_OF_A_MEASURE = 4


@dataclass(frozen=True)
class Course:
    """One quantity over several examinations, or over the steps of one."""

    instrument: str
    quantity: str
    unit: str
    values: tuple[float | None, ...]
    real: tuple[bool | None, ...]
    """Whether it differs from the first by more than noise; None where it cannot be said."""
    changes: tuple[str, ...]
    """improved, worse, changed, same or unknown."""

    @property
    def texts(self) -> list[str]:
        """The values as people read them."""
        return ["–" if v is None else number_text(v) for v in self.values]

    @property
    def marked(self) -> bool:
        """Whether any value differs from the first by more than noise."""
        return any(self.real)

    @property
    def mark(self) -> Any:
        """The values as a line."""
        known = [t for t in self.texts if t != "–"]
        ringed = [i for i, real in enumerate(self.real) if real]
        return marks.course(self.values, f"{self.quantity}: {', '.join(known[:40])}", ringed)


def two(a: Examination, b: Examination) -> dict[str, Any]:
    """What the page of two shows: differences by whether they are noise, answers that flipped, layers."""
    found: Comparison = compare(a, b)
    real = sorted(found.larger_than_noise(), key=_weight)
    asked = {name: f.question for name, f in b.findings.items()}
    return {
        "comparison": found,
        "real": [_row(d) | {"question": asked.get(d.instrument, "")} for d in real],
        "noise": [_row(d) for d in found.differences if d.larger_than_noise is False],
        "unsaid": [_row(d) for d in found.differences if d.larger_than_noise is None],
        "flips": flips(a, b),
        "layers": layer_changes(a, b),
    }


def groups(a: Sequence[Examination], b: Sequence[Examination], paired: bool) -> dict[str, Any]:
    """What the page of two groups of runs shows: differences by whether they are larger than that between runs.

    Raises:
        UsageError: MT181 for fewer than two runs a side, or pairs that do not match.
    """
    from microtome.group_comparison import compare_groups

    found = compare_groups(a, b, paired=paired)
    real = sorted(found.larger_than_noise(), key=_weight)
    return {
        "comparison": found,
        "real": [_row(d) for d in real],
        "noise": [_row(d) for d in found.differences if d.larger_than_noise is False],
        "unsaid": [_row(d) for d in found.differences if d.larger_than_noise is None],
    }


def _weight(d: Difference) -> tuple[Any, ...]:
    """What is read first: deciding numbers, then what got better or worse, then evidence, then the report's order.

    Beyond one in ten thousand the evidence of no difference is told from that of another.
    """
    return (
        not d.headline, d.change not in ("improved", "worse"), max(d.p_holm or 0.0, 1e-4), _place(d.instrument),
        d.quantity,
    )  # fmt: skip


def _place(instrument: str) -> tuple[int, str]:
    """Where an instrument stands in the order of rooms."""
    room = instrument.partition("/")[0]
    return (list(ROOMS).index(room) if room in ROOMS else len(ROOMS), instrument)


def _row(d: Difference) -> dict[str, Any]:
    bound = max(abs(x) for x in (d.difference, d.low or 0.0, d.high or 0.0))
    said = f"{d.quantity}: {d.text()}"
    return {"d": d, "mark": marks.interval(d.difference, d.low, d.high, bound * 1.05, said)}


def flips(a: Examination, b: Examination) -> dict[str, Any] | None:
    """Examples answered right by one and wrong by the other: the first two-valued samples both have."""
    for name, first in a.findings.items():
        second = b.findings.get(name)
        one, two_ = _two_valued(first), _two_valued(second) if second else None
        if one is None or two_ is None:
            continue
        shared, at_a, at_b = np.intersect1d(one[0], two_[0], assume_unique=False, return_indices=True)
        if not shared.size:
            continue
        before, after = one[1][at_a], two_[1][at_b]
        fell, rose = shared[before > after], shared[before < after]
        return {
            "finding": name,
            "headline": first.headline,
            "rows": int(shared.size),
            "fell": fell[:MOST_FLIPS].tolist(),
            "rose": rose[:MOST_FLIPS].tolist(),
            "fell_count": int(fell.size),
            "rose_count": int(rose.size),
        }
    return None


def _two_valued(f: Finding) -> tuple[np.ndarray, np.ndarray] | None:
    rows, samples = f.arrays.get("rows"), f.arrays.get("samples")
    if (
        f.status != "measured"
        or rows is None
        or samples is None
        or rows.shape != samples.shape
        or rows.ndim != 1
    ):
        return None
    return (rows, samples) if rows.size and np.isin(samples, (0, 1)).all() else None


def layer_changes(a: Examination, b: Examination) -> list[dict[str, Any]]:
    """Measures of layers that differ, the largest relative change first; these have no interval."""
    before = {layer.name: layer for layer in layers(a)}
    found: list[dict[str, Any]] = []
    for layer in layers(b):
        old = before.get(layer.name)
        for label, value in layer.values.items():
            was = old.values.get(label) if old else None
            if was is None or was == value:
                continue
            share = abs(value - was) / max(abs(was), abs(value))
            change = f"{share:.0%}" if share >= 0.01 else "below 1%"
            row = {"layer": layer.name, "measure": label, "a": was, "b": value}
            found.append(row | {"share": share, "change": change})
    found.sort(key=lambda each: -each["share"])
    # A few of each measure: gradients alone would fill the page.
    seen: Counter[str] = Counter()
    few = []
    for each in found:
        seen[each["measure"]] += 1
        if seen[each["measure"]] <= MOST_OF_A_MEASURE:
            few.append(each)
    return sorted(few, key=lambda each: each["measure"])


def many(exams: Sequence[Examination]) -> list[Course]:
    """Every headline over the examinations, with what is more than noise against the first."""
    against = [compare(exams[0], each) for each in exams[1:]]
    by_key = [{(d.instrument, d.quantity): d for d in c.differences} for c in against]
    found = []
    names = dict.fromkeys(name for each in exams for name in each.findings)
    for name in sorted(names, key=_place):
        heads = [
            f for each in exams if (f := each.findings.get(name)) and f.status == "measured" and f.headline
        ]
        if not heads:
            continue
        key = heads[0].headline
        values = tuple(_value(each, name, key) for each in exams)
        differences = [known.get((name, key)) for known in by_key]
        quantity = heads[0].quantities.get(key)
        found.append(
            Course(
                instrument=name,
                quantity=key,
                unit=quantity.unit if quantity else "1",
                values=values,
                real=(False, *(d.larger_than_noise if d else None for d in differences)),
                changes=("same", *(d.change if d else "unknown" for d in differences)),
            )
        )
    return sorted(found, key=lambda c: not c.marked)


def _value(exam: Examination, name: str, key: str) -> float | None:
    f = exam.findings.get(name)
    quantity = f.quantities.get(key) if f and f.status == "measured" else None
    return quantity.value if quantity else None


def training(exam: Examination) -> tuple[list[str], list[Course]]:
    """Steps and courses of an examination along checkpoints: tables called "trajectory"."""
    steps: dict[float, None] = {}
    tables = []
    for f in exam:
        table = f.tables.get("trajectory")
        if f.status != "measured" or not table or f.headline not in f.quantities:
            continue
        if {"step", f.headline} <= set(table.columns):
            at, value = table.columns.index("step"), table.columns.index(f.headline)
            known = {float(s): row[value] for row in table.rows if isinstance(s := row[at], int | float)}
            steps |= dict.fromkeys(known)
            tables.append((f, known))
    order = sorted(steps)
    found = []
    for f, known in tables:
        values = tuple(float(v) if isinstance(v := known.get(s), int | float) else None for s in order)
        quantity = f.quantities[f.headline]
        nothing = (None,) * len(order)
        found.append(
            Course(f.instrument, f.headline, quantity.unit, values, nothing, ("unknown",) * len(order))
        )
    return [format_number(s) for s in order], found
