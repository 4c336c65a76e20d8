"""Two samples of networks set side by side: differences that are larger than the variation between runs.

A difference between two networks says nothing of two ways of training: another seed moves it too. Several runs of each
way do. Runs that share seeds are paired (``paired=True``), which takes out what a seed does to both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from scipy import stats

from microtome.comparison import Comparison, Difference, Unpaired, judged, same_question, went
from microtome.errors import UsageError
from microtome.finding import Examination, Quantity


def compare_groups(
    a: Sequence[Examination], b: Sequence[Examination], *, paired: bool = False, alpha: float = 0.05
) -> Comparison:
    """For every quantity that all runs measured: mean of b - mean of a, with its interval over runs.

    Paired: Student's t over the differences. Else Welch's t over the two samples. p-values are corrected for their
    number (Holm 1979); the effect is Cohen's d, over the pooled deviation or, paired, over that of the differences.

    Raises:
        UsageError: MT181 for fewer than two runs a side, or pairs that do not match.
    """
    if min(len(a), len(b)) < 2:
        raise UsageError(
            "MT181",
            f"groups of {len(a)} and {len(b)} runs",
            fix="give at least two runs on each side, by comma",
        )
    if paired and len(a) != len(b):
        raise UsageError(
            "MT181", f"{len(a)} and {len(b)} runs are no pairs", fix="give as many, in the same order"
        )
    runs = [*a, *b]
    found: list[Difference] = []
    unpaired: list[Unpaired] = []
    for name in dict.fromkeys(name for exam in runs for name in exam.findings):
        measured = [
            exam.findings[name]
            for exam in runs
            if name in exam.findings and exam.findings[name].status == "measured"
        ]
        if len(measured) < len(runs):
            counts = [
                sum(name in e.findings and e.findings[name].status == "measured" for e in side)
                for side in (a, b)
            ]
            unpaired.append(
                Unpaired(
                    name=name,
                    a=f"measured in {counts[0]} of {len(a)}",
                    b=f"measured in {counts[1]} of {len(b)}",
                )
            )
            continue
        for key in measured[0].quantities:
            held = [finding.quantities.get(key) for finding in measured]
            quantities = [q for q in held if q is not None]
            if len(quantities) == len(runs) and len({q.unit for q in quantities}) == 1:
                headline = all(finding.headline == key for finding in measured)
                found.append(
                    _difference(name, key, headline, quantities[: len(a)], quantities[len(a) :], paired)
                )
    ground = dict.fromkeys(line for exam in runs[1:] for line in same_question(runs[0], exam))
    return Comparison(
        a=", ".join(exam.id for exam in a),
        b=", ".join(exam.id for exam in b),
        a_name=f"{len(a)} runs of {a[0].subject.get('name', '')}",
        b_name=f"{len(b)} runs of {b[0].subject.get('name', '')}",
        alpha=alpha,
        tests=sum(d.p is not None for d in found),
        differences=tuple(judged(found, alpha)),
        ground=tuple(ground),
        unpaired=tuple(unpaired),
    )


def _difference(
    name: str, key: str, headline: bool, a: Sequence[Quantity], b: Sequence[Quantity], paired: bool
) -> Difference:
    one, two = np.array([q.value for q in a]), np.array([q.value for q in b])
    mean = float(two.mean() - one.mean())
    base = Difference(
        instrument=name,
        quantity=key,
        headline=headline,
        unit=b[0].unit,
        a=float(one.mean()),
        b=float(two.mean()),
        difference=mean,
        change=went(mean, b[0].better),
    )
    if paired:
        differences = two - one
        error, free = float(differences.std(ddof=1)) / math.sqrt(len(one)), float(len(one) - 1)
        spread, method = float(differences.std(ddof=1)), f"paired t over {len(one)} pairs of runs"
    else:
        parts = one.var(ddof=1) / len(one), two.var(ddof=1) / len(two)
        error = math.sqrt(sum(parts))
        below = parts[0] ** 2 / (len(one) - 1) + parts[1] ** 2 / (len(two) - 1)
        free = float(sum(parts) ** 2 / below) if below > 0 else float(len(one) + len(two) - 2)
        squares = one.var() * len(one) + two.var() * len(two)
        spread = math.sqrt(squares / (len(one) + len(two) - 2))
        method = f"Welch's t over {len(one)} and {len(two)} runs"
    noise = 1e-12 * max(np.abs(one).max(), np.abs(two).max())
    if error <= noise:  # runs that do not vary: nothing is left to chance
        same = abs(mean) <= noise
        said = "no variation between runs: " + ("the same in all" if same else "differs in all")
        return msgspec.structs.replace(base, method=said, larger_than_noise=not same)
    half = float(stats.t.ppf(0.975, free)) * error
    return msgspec.structs.replace(
        base,
        low=mean - half,
        high=mean + half,
        p=float(2 * stats.t.sf(abs(mean) / error, free)),
        effect=mean / spread,
        effect_name="dz" if paired else "d",
        method=method,
        rows=None,
    )


__all__ = ["compare_groups"]
