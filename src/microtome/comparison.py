"""Two examinations side by side: which differences are larger than noise.

For every quantity that both examinations measured, the difference *b - a* with its interval, a p-value, and
the p-value corrected (Holm) for the number of questions asked. How it is computed depends on what is known,
and each row says which it was:

- *paired*: both findings carry ``arrays["samples"]`` and ``arrays["rows"]`` with rows in common. The
  differences of each example are tested: a paired t-test; for two-valued samples the exact McNemar test with
  the interval of Bonett and Price (2012, Br. J. Math. Stat. Psychol. 65, 479-488).
- *intervals*: each number has its own interval. They are combined by the method of variance estimates
  recovery (Zou and Donner, 2008, Stat. Med. 27, 1693-1702), which keeps unequal halves unequal, as if the two
  were independent; where both saw the same rows this is usually cautious.
- *exact*: both were counted, not estimated. Any difference is real, and there is nothing to test.
- *no uncertainty*: it cannot be said.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from scipy import stats

from microtome.finding import Examination, Finding, Quantity, format_number
from microtome.statistics import holm as holm

Change = Literal["improved", "worse", "changed", "same", "unknown"]

# What may differ between two networks; every other entry of a subject speaks of the question asked.
_OF_THE_NETWORK = frozenset(
    (
        "name",
        "class",
        "parameters",
        "layers",
        "device",
        "dtype",
        "inferred",
        "model_hash",
        "source",
        "weights",
    )
)


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One quantity in two examinations."""

    instrument: str
    quantity: str
    headline: bool
    unit: str
    a: float
    b: float
    difference: float
    """b - a; over the shared rows when paired."""
    low: float | None = None
    high: float | None = None
    confidence: float = 0.95
    """Of the interval, which is for this difference alone (not corrected for the others)."""
    p: float | None = None
    p_holm: float | None = None
    effect: float | None = None
    effect_name: str = ""
    """"dz": mean over standard deviation of the paired differences; "z": difference over its error."""
    larger_than_noise: bool | None = None
    """None: cannot be said."""
    change: Change = "unknown"
    method: str = ""
    rows: int | None = None
    marks: tuple[str, ...] = ()
    """Why the two may not be comparable, beyond what :attr:`Comparison.ground` says of all."""

    def text(self) -> str:
        """Render the difference as ``-0.021 [-0.030, -0.012]``."""
        said = _signed(self.difference)
        if self.low is not None and self.high is not None:
            said += f" [{_signed(self.low)}, {_signed(self.high)}]"
        return said + ("" if self.unit in ("", "1") else f" {self.unit}")


class Unpaired(msgspec.Struct, frozen=True, kw_only=True):
    """An instrument or quantity that only one of the two measured."""

    name: str
    a: str
    b: str


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """All differences between two examinations, in the order of the first."""

    a: str
    b: str
    a_name: str
    b_name: str
    alpha: float
    tests: int
    """How many p-values the Holm correction spans."""
    differences: tuple[Difference, ...]
    ground: tuple[str, ...] = ()
    """Ways in which the two examinations did not ask the same: data, task, seed. Empty: none known."""
    unpaired: tuple[Unpaired, ...] = ()

    @property
    def comparable(self) -> bool:
        """Whether both asked the same of the same data, as far as their descriptions say."""
        return not self.ground

    def larger_than_noise(self) -> list[Difference]:
        """Return the differences that are not noise, the strongest evidence first."""
        real = [d for d in self.differences if d.larger_than_noise]
        return sorted(real, key=lambda d: (d.p_holm if d.p_holm is not None else 0.0, d.instrument))

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as ``--json`` prints them."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain | {"comparable": self.comparable}

    def text(self) -> str:
        """Render it for a terminal: what changed, what did not, what cannot be said."""
        lines = [f"a  {self.a_name} ({self.a})", f"b  {self.b_name} ({self.b})", ""]
        for ground in self.ground:
            lines.append(f"! {ground}")
        if self.ground:
            lines += ["! The differences below may come from this, not from the networks.", ""]
        groups = (
            ("larger than noise", [d for d in self.differences if d.larger_than_noise]),
            ("within noise", [d for d in self.differences if d.larger_than_noise is False]),
            ("cannot say", [d for d in self.differences if d.larger_than_noise is None]),
        )
        for heading, members in groups:
            if members:
                lines += [f"{heading} ({len(members)})", *_columns(members), ""]
        if not self.differences:
            lines += ["No quantity was measured in both.", ""]
        if self.unpaired:
            lines.append(f"in one only ({len(self.unpaired)})")
            lines += [f"  {each.name}: a {each.a}; b {each.b}" for each in self.unpaired] + [""]
        if self.tests:
            lines.append(
                f"difference = b - a with its own 95% interval; p corrected for {self.tests} tests (Holm), "
                f"larger than noise below {self.alpha:g}"
            )
        return "\n".join(lines).rstrip() + "\n"


def compare(a: Examination, b: Examination, *, alpha: float = 0.05) -> Comparison:
    """Set ``b`` against ``a``: for every quantity in both, the difference and whether it is noise."""
    asked = tuple(same_question(a, b))
    ground = (*asked, *_ran(a, b))
    found: list[Difference] = []
    unpaired: list[Unpaired] = []
    for name in dict.fromkeys([*a.findings, *b.findings]):
        first, second = a.findings.get(name), b.findings.get(name)
        if first is None or second is None or first.status != "measured" or second.status != "measured":
            if first is None or second is None or first.status != second.status:
                unpaired.append(Unpaired(name=name, a=_state(first), b=_state(second)))
            continue
        marks = tuple(_marks(first, second))
        for quantity in dict.fromkeys([*first.quantities, *second.quantities]):
            one, two = first.quantities.get(quantity), second.quantities.get(quantity)
            if one is None or two is None:
                states = ("measured" if q is not None else "absent" for q in (one, two))
                unpaired.append(Unpaired(name=f"{name}, {quantity}", a=next(states), b=next(states)))
                continue
            headline = quantity == first.headline == second.headline
            pair = _paired(first, second) if headline and not asked else None
            found.append(_difference(name, quantity, one, two, headline, pair, marks))
    return Comparison(
        a=a.id,
        b=b.id,
        a_name=str(a.subject.get("name", "")),
        b_name=str(b.subject.get("name", "")),
        alpha=alpha,
        tests=sum(d.p is not None for d in found),
        differences=tuple(judged(found, alpha)),
        ground=ground,
        unpaired=tuple(unpaired),
    )


# --- one quantity ------------------------------------------------------------------------------------


class _Pair(msgspec.Struct, frozen=True):
    differences: np.ndarray
    step: float
    """The distance of the two values the samples take; 0 when they take more than two."""
    note: str


def _difference(
    name: str,
    quantity: str,
    one: Quantity,
    two: Quantity,
    headline: bool,
    pair: _Pair | None,
    marks: tuple[str, ...],
) -> Difference:
    base = Difference(
        instrument=name,
        quantity=quantity,
        headline=headline,
        unit=two.unit,
        a=one.value,
        b=two.value,
        difference=two.value - one.value,
        marks=marks,
    )
    if one.unit != two.unit:
        said = f"the units differ ({one.unit} and {two.unit}): cannot say"
        return msgspec.structs.replace(base, method=said)
    if pair is not None:
        made = _paired_test(base, pair)
    elif _exact(one) and _exact(two):
        made = msgspec.structs.replace(
            base, method="exact: both were counted", larger_than_noise=base.difference != 0
        )
    else:
        made = _interval_test(base, one, two)
    # ``change`` holds which way it went; whether that is more than noise is judged when all tests are known.
    # Two versions of one instrument may call another direction the better one: then none is certain.
    better = two.better if one.better == two.better else ""
    return msgspec.structs.replace(made, change=went(made.difference, better))


def went(difference: float, better: str) -> Change:
    """Which way a difference goes, where lower or higher is better."""
    if difference == 0:
        return "same"
    if not better:
        return "changed"
    return "improved" if (difference < 0) == (better == "lower") else "worse"


def judged(found: list[Difference], alpha: float) -> Iterator[Difference]:
    """Correct the p-values for their number, and say of each difference whether it is noise."""
    corrected = iter(holm([d.p for d in found if d.p is not None]))
    for each in found:
        real, p_holm = each.larger_than_noise, None
        if each.p is not None:
            p_holm = next(corrected)
            real = p_holm < alpha
        change: Change = each.change if real else "unknown" if real is None else "same"
        yield msgspec.structs.replace(each, p_holm=p_holm, larger_than_noise=real, change=change)


def _paired(first: Finding, second: Finding) -> _Pair | None:
    """Differences over the rows both speak of; None when there are fewer than two or they are no mean."""
    sides = []
    for finding in (first, second):
        samples, rows = finding.arrays.get("samples"), finding.arrays.get("rows")
        if samples is None or rows is None or samples.ndim != 1 or samples.shape != rows.shape:
            return None
        values = samples.astype(np.float64)
        known = np.isfinite(values)
        values, ids = values[known], rows[known]
        headline = finding.quantities[finding.headline].value
        if values.size == 0 or not math.isclose(values.mean(), headline, rel_tol=1e-3, abs_tol=1e-6):
            return None  # the headline is something else than the mean of these, so pairing would not test it
        unique, place, count = np.unique(ids, return_inverse=True, return_counts=True)
        sides.append((unique, np.bincount(place.ravel(), values) / count))
    (rows_a, values_a), (rows_b, values_b) = sides
    _, at_a, at_b = np.intersect1d(rows_a, rows_b, assume_unique=True, return_indices=True)
    if at_a.size < 2:
        return None
    used_a, used_b = values_a[at_a], values_b[at_b]
    levels = np.unique(np.concatenate([used_a, used_b]))
    step = 0.0 if levels.size > 2 else float(np.ptp(levels) or abs(levels[0]) or 1.0)
    all_rows = at_a.size == rows_a.size == rows_b.size
    note = "" if all_rows else f" (of {rows_a.size} and {rows_b.size})"
    return _Pair(used_b - used_a, step, f"{at_a.size} shared rows{note}")


def _paired_test(base: Difference, pair: _Pair) -> Difference:
    d, n = pair.differences, pair.differences.size
    mean, spread = float(d.mean()), float(d.std(ddof=1))
    noise = 1e-12 * max(1.0, abs(base.a), abs(base.b))
    effect = mean / spread if spread > noise else None
    if pair.step:
        rises, falls = int((d > 0).sum()), int((d < 0).sum())
        p = float(stats.binomtest(rises, rises + falls).pvalue) if rises + falls else 1.0
        up, down = (rises + 1) / (n + 2), (falls + 1) / (n + 2)
        half = stats.norm.ppf(0.975) * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
        low, high = (up - down - half) * pair.step, (up - down + half) * pair.step
        method = f"paired, exact McNemar over {pair.note}: {rises} rose, {falls} fell"
    elif spread <= noise:
        p, low, high = (1.0, mean, mean) if abs(mean) <= noise else (0.0, mean, mean)
        method = f"paired: the same difference on every one of {pair.note}"
    else:
        error = spread / math.sqrt(n)
        p = float(2 * stats.t.sf(abs(mean) / error, n - 1))
        half = float(stats.t.ppf(0.975, n - 1)) * error
        low, high = mean - half, mean + half
        method = f"paired t over {pair.note}"
    return msgspec.structs.replace(
        base,
        difference=mean,
        low=float(low),
        high=float(high),
        p=p,
        effect=effect,
        effect_name="dz" if effect is not None else "",
        method=method,
        rows=n,
    )


def _interval_test(base: Difference, one: Quantity, two: Quantity) -> Difference:
    arms_a, arms_b = _arms(one), _arms(two)
    if arms_a is None and arms_b is None:
        return msgspec.structs.replace(base, method="no uncertainty: cannot say")
    (down_a, up_a), (down_b, up_b) = arms_a or (0.0, 0.0), arms_b or (0.0, 0.0)
    below, above = math.hypot(down_b, up_a), math.hypot(up_b, down_a)
    toward_zero = below if base.difference > 0 else above  # the arm that reaches for "no difference"
    z95 = float(stats.norm.ppf(0.975))
    if arms_a is None or arms_b is None:
        # The side without an interval can only add noise: "within" is certain, "beyond" is not.
        within = abs(base.difference) <= toward_zero
        which = "a" if arms_a is None else "b"
        said = f"{which} has no interval: " + ("within the other's alone" if within else "cannot say")
        return msgspec.structs.replace(base, method=said, larger_than_noise=False if within else None)
    if toward_zero == 0.0:
        p, z = (1.0, None) if base.difference == 0 else (0.0, None)
    else:
        z = base.difference / (toward_zero / z95)
        p = float(2 * stats.norm.sf(abs(z)))
    return msgspec.structs.replace(
        base,
        low=base.difference - below,
        high=base.difference + above,
        p=p,
        effect=z,
        effect_name="z" if z is not None else "",
        method="intervals, taken as normal and independent",
    )


def _arms(quantity: Quantity) -> tuple[float, float] | None:
    """How far the 95 % interval reaches below and above the value; None without an interval."""
    if _exact(quantity):
        return 0.0, 0.0
    if quantity.low is None or quantity.high is None or not 0 < quantity.confidence < 1:
        return None
    to_95 = float(stats.norm.ppf(0.975) / stats.norm.ppf((1 + quantity.confidence) / 2))
    down, up = quantity.value - quantity.low, quantity.high - quantity.value
    if down < 0 or up < 0:  # the interval does not hold its value (a corrected estimate): use its half-width
        down = up = (quantity.high - quantity.low) / 2
    return down * to_95, up * to_95


def _exact(quantity: Quantity) -> bool:
    if quantity.low is None or quantity.high is None:
        return quantity.how.lower().startswith("exact")
    return quantity.low == quantity.high == quantity.value


# --- the ground they stand on ------------------------------------------------------------------------


def same_question(a: Examination, b: Examination) -> Iterator[str]:
    """Different data or another task: rows of one number are not the same examples."""
    sources = (_source(a), _source(b))
    if sources[0] != sources[1] and _same_examples(a, b):
        sources = ({}, {})
    for one, two, network in ((a.subject, b.subject, _OF_THE_NETWORK), (*sources, frozenset())):
        for key in dict.fromkeys([*one, *two]):
            if key not in network and one.get(key) != two.get(key):
                yield f"{key} differs: {_short(one.get(key))} and {_short(two.get(key))}"


def _same_examples(a: Examination, b: Examination) -> bool:
    """Whether both kept the same inputs and labels under the same numbers: one data set, however it was named."""
    for name, first in a.findings.items():
        one, two = first.arrays, b.findings[name].arrays if name in b.findings else {}
        inputs = [k for k in ("thumbnails", "inputs", "tokens", "graphs") if k in one and k in two]
        if not inputs or not all({"rows", "labels"} <= each.keys() for each in (one, two)):
            continue
        keys = ("labels", *inputs)
        if not all(_numbered(each, keys) for each in (one, two)):
            return False
        shared, here, there = np.intersect1d(one["rows"], two["rows"], return_indices=True)
        enough = 2 * len(shared) >= max(len(one["rows"]), len(two["rows"])) > 0
        return enough and all(np.array_equal(one[k][here], two[k][there]) for k in keys)
    return False


def _numbered(arrays: dict[str, np.ndarray], keys: Sequence[str]) -> bool:
    """Whether ``rows`` are numbers of examples, each once, and the others have an entry for each."""
    rows = arrays["rows"]
    return (
        rows.ndim == 1
        and np.unique(rows).size == rows.size
        and all(arrays[k].ndim >= 1 and len(arrays[k]) == rows.size for k in keys)
    )


def _source(exam: Examination) -> dict[str, Any]:
    """Where its data came from, as far as it was said."""
    source = exam.subject.get("source")
    return {k: v for k, v in source.items() if "data" in str(k)} if isinstance(source, dict) else {}


def _ran(a: Examination, b: Examination) -> Iterator[str]:
    if a.seed != b.seed:
        yield f"seed differs: {a.seed} and {b.seed}"
    if a.versions.get("microtome") != b.versions.get("microtome"):
        yield f"microtome differs: {a.versions.get('microtome')} and {b.versions.get('microtome')}"


def _marks(first: Finding, second: Finding) -> Iterator[str]:
    for key in dict.fromkeys([*first.options, *second.options]):
        one, two = first.options.get(key), second.options.get(key)
        if msgspec.json.encode(one, enc_hook=str) != msgspec.json.encode(two, enc_hook=str):
            yield f"option {key} differs: {_short(one)} and {_short(two)}"
    if first.coverage and second.coverage and first.coverage.rows != second.coverage.rows:
        yield f"examples differ: {first.coverage.rows} and {second.coverage.rows}"


def _state(finding: Finding | None) -> str:
    if finding is None:
        return "absent"
    return finding.status + (f" ({finding.reason})" if finding.reason else "")


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + format_number(value)


def _columns(members: Sequence[Difference]) -> list[str]:
    rows = [("", "a", "b", "difference", "p", "", "by")]
    for each in members:
        name = each.instrument + ("" if each.headline else f", {each.quantity}")
        p = "" if each.p_holm is None else f"{each.p_holm:.2g}" if each.p_holm >= 1e-4 else "<1e-4"
        change = each.change if each.larger_than_noise else ""
        mark = "".join(f" ! {m}" for m in each.marks)
        numbers = (format_number(each.a), format_number(each.b), each.text())
        rows.append((name, *numbers, p, change, each.method + mark))
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    return [
        "  " + "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]
