"""Comparison: planted differences are found, null ones are called noise, and what cannot be said is not."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from microtome.comparison import Comparison, Difference, compare, holm
from microtome.finding import Coverage, Examination, Finding, Quantity, refused


def exam(findings: dict[str, Finding], exam_id: str = "x", **subject: object) -> Examination:
    described = {"name": exam_id, "task": "classification", "examples": 100} | subject
    return Examination(id=exam_id, created="2026", subject=described, findings=findings)


def sampled(values: np.ndarray, rows: np.ndarray | None = None, better: str = "lower") -> Finding:
    mean, error = float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))
    quantity = Quantity(value=mean, low=mean - 1.96 * error, high=mean + 1.96 * error, better=better)  # type: ignore[arg-type]
    ids = np.arange(len(values)) if rows is None else rows
    return Finding(headline="m", quantities={"m": quantity}, arrays={"samples": values, "rows": ids})


def bare(value: float, low: float | None = None, high: float | None = None, **more: object) -> Finding:
    quantity = Quantity(value=value, low=low, high=high, **more)  # type: ignore[arg-type]
    return Finding(headline="m", quantities={"m": quantity})


def only(a: Finding, b: Finding) -> Difference:
    (difference,) = compare(exam({"r/i": a}), exam({"r/i": b})).differences
    return difference


def test_paired_t_is_scipys() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=200)
    moved = base + rng.normal(0.1, 0.3, size=200)
    found = only(sampled(base), sampled(moved))
    truth = stats.ttest_rel(moved, base)
    assert found.p == pytest.approx(truth.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(truth.confidence_interval()))
    assert found.larger_than_noise
    assert found.change == "worse"
    assert found.rows == 200
    assert "paired t over 200 shared rows" in found.method
    assert found.effect == pytest.approx(np.mean(moved - base) / np.std(moved - base, ddof=1))


def test_pairing_sees_what_intervals_cannot() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(0, 5, size=300)
    moved = base - 0.2 + rng.normal(0, 0.3, size=300)
    assert only(sampled(base), sampled(moved)).change == "improved"
    unpaired = sampled(moved, rows=np.arange(1000, 1300))
    found = only(sampled(base), unpaired)
    assert found.larger_than_noise is False
    assert found.method.startswith("intervals")


def test_rows_are_matched_by_their_ids() -> None:
    rng = np.random.default_rng(2)
    base = rng.normal(size=50)
    order = rng.permutation(50)
    shifted = sampled((base + 1)[order], rows=order)
    found = only(sampled(base), shifted)
    assert found.difference == pytest.approx(1.0)
    assert "same difference on every one" in found.method
    half = sampled(base[:30] + 1)
    found = only(sampled(base), half)
    assert found.rows == 30
    assert "30 shared rows (of 50 and 30)" in found.method


def test_two_valued_samples_take_mcnemar() -> None:
    before = np.array([1.0] * 60 + [0.0] * 40)
    after = before.copy()
    after[60:75] = 1.0  # 15 mended
    after[:3] = 0.0  # 3 broken
    found = only(sampled(before, better="higher"), sampled(after, better="higher"))
    assert found.p == pytest.approx(stats.binomtest(15, 18).pvalue)
    assert found.difference == pytest.approx(0.12)
    assert found.low is not None and found.high is not None and found.low < 0.12 < found.high
    assert found.change == "improved"
    assert "15 rose, 3 fell" in found.method
    same = only(sampled(before), sampled(before))
    assert (same.p, same.change, same.difference) == (1.0, "same", 0.0)
    assert same.low is not None and same.low < 0 < (same.high or 0)


def test_samples_that_are_not_the_headline_are_not_paired() -> None:
    values = np.linspace(0, 1, 40)
    one = Finding(
        headline="m",
        quantities={"m": Quantity(value=50.0, low=45, high=55, unit="%")},
        arrays={"samples": values, "rows": np.arange(40)},
    )
    assert only(one, one).method.startswith("intervals")


def test_intervals_combine_and_keep_their_unequal_halves() -> None:
    found = only(bare(0.5, 0.4, 0.7, better="higher"), bare(0.9, 0.8, 0.95, better="higher"))
    assert found.low == pytest.approx(0.4 - math.hypot(0.1, 0.2))
    assert found.high == pytest.approx(0.4 + math.hypot(0.05, 0.1))
    assert found.p == pytest.approx(2 * stats.norm.sf(0.4 / (math.hypot(0.1, 0.2) / 1.959964)), rel=1e-4)
    assert found.change == "improved"
    wide = only(bare(0.5, 0.4, 0.6, confidence=0.99), bare(0.5, 0.4, 0.6, confidence=0.99))
    plain = only(bare(0.5, 0.4, 0.6), bare(0.5, 0.4, 0.6))
    assert wide.high is not None and plain.high is not None and wide.high < plain.high


def test_without_uncertainty_nothing_is_claimed() -> None:
    found = only(bare(1.0), bare(2.0))
    assert (found.larger_than_noise, found.change, found.p) == (None, "unknown", None)
    assert found.method == "no uncertainty: cannot say"
    beyond = only(bare(1.0, 0.9, 1.1), bare(2.0))
    assert beyond.larger_than_noise is None
    within = only(bare(1.0, 0.9, 1.1), bare(1.05))
    assert within.larger_than_noise is False


def test_counts_are_exact() -> None:
    found = only(bare(100, how="exact", better="lower"), bare(99, how="exact", better="lower"))
    assert (found.larger_than_noise, found.change, found.p) == (True, "improved", None)
    assert only(bare(5, how="exact"), bare(5, how="exact")).change == "same"
    clopper = only(bare(0.5, 0.4, 0.6, how="exact binomial"), bare(0.52, 0.42, 0.62, how="exact binomial"))
    assert clopper.larger_than_noise is False


def test_units_that_differ_are_not_subtracted_in_earnest() -> None:
    found = only(bare(1, 0.9, 1.1, unit="s"), bare(2000, 1900, 2100, unit="ms"))
    assert found.larger_than_noise is None
    assert "units differ" in found.method


def test_different_ground_is_said() -> None:
    values = np.random.default_rng(0).normal(size=50)
    a = exam({"r/i": sampled(values)}, "a", source={"model": "m:a", "data": "d:test"})
    b = exam({"r/i": sampled(values + 1)}, "b", examples=200, task="regression", source={"data": "d:other"})
    made = compare(a, b)
    assert not made.comparable
    assert any(line.startswith("task differs: classification and regression") for line in made.ground)
    assert any(line.startswith("data differs") for line in made.ground)
    assert made.differences[0].method.startswith("intervals")  # rows of another set are other examples
    assert "! examples differs: 100 and 200" in made.text()
    same = compare(a, a)
    assert same.comparable and same.ground == ()


def test_the_same_examples_under_another_name_are_the_same_data() -> None:
    rng = np.random.default_rng(0)
    values, pictures = rng.normal(size=50), rng.integers(0, 255, (50, 4, 4, 1)).astype(np.uint8)

    def shown(name: str, **changes: np.ndarray) -> Examination:
        found = sampled(values + (name == "b"))
        arrays = found.arrays | {"labels": np.arange(50) % 3, "thumbnails": pictures} | changes
        made = Finding(headline="m", quantities=found.quantities, arrays=arrays)
        return exam({"r/examples": made}, name, source={"data": f"d:{name}"})

    made = compare(shown("a"), shown("b"))
    assert made.comparable and "50 shared rows" in made.differences[0].method
    others = (
        {"labels": np.arange(50) % 2},
        {"thumbnails": pictures[::-1]},
        {"rows": np.arange(40, 90)},
        {"rows": np.zeros(50, int)},
        {"labels": np.arange(3)},
    )
    for other in others:
        assert not compare(shown("a"), shown("b", **other)).comparable


def test_a_difference_of_options_or_rows_is_marked() -> None:
    quantity = {"m": Quantity(value=1, low=0, high=2)}
    one = Finding(
        headline="m", quantities=quantity, options={"bins": 10}, coverage=Coverage(rows=5, rows_total=9)
    )
    two = Finding(
        headline="m", quantities=quantity, options={"bins": 15}, coverage=Coverage(rows=9, rows_total=9)
    )
    found = only(one, two)
    assert found.marks == ("option bins differs: 10 and 15", "examples differ: 5 and 9")


def test_what_only_one_measured_is_listed() -> None:
    a = exam({"r/i": bare(1), "r/gone": bare(1), "r/no": refused("no classes")}, "a")
    b = exam({"r/i": bare(1), "r/no": bare(2), "r/new": bare(3)}, "b")
    listed = {each.name: (each.a, each.b) for each in compare(a, b).unpaired}
    assert listed == {
        "r/gone": ("measured", "absent"),
        "r/no": ("refused (no classes)", "measured"),
        "r/new": ("absent", "measured"),
    }


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=30))
def test_holm_is_the_textbooks(p_values: list[float]) -> None:
    corrected = holm(p_values)
    for index, p in enumerate(p_values):
        assert p <= corrected[index] <= 1
        reject = corrected[index] < 0.05
        # Step-down by definition: every p up to this one in order beats alpha / (m - rank).
        order = sorted(range(len(p_values)), key=lambda i: p_values[i])
        place = order.index(index)
        steps = [p_values[order[k]] * (len(p_values) - k) < 0.05 for k in range(place + 1)]
        assert reject == all(steps)


def test_null_is_wrong_as_often_as_stated() -> None:
    rng = np.random.default_rng(7)
    many = 800
    t_wrong = interval_wrong = mcnemar_wrong = 0
    for _ in range(many):
        base = rng.normal(size=40)
        noise = base + rng.normal(size=40)
        found = only(sampled(base), sampled(noise))
        t_wrong += found.p is not None and found.p < 0.05
        a, b = rng.normal(size=2)
        found = only(bare(a, a - 1.96, a + 1.96), bare(b, b - 1.96, b + 1.96))
        interval_wrong += found.p is not None and found.p < 0.05
        first, second = (rng.random((2, 80)) < 0.7).astype(float)
        found = only(sampled(first), sampled(second))
        mcnemar_wrong += found.p is not None and found.p < 0.05
    spread = 3.5 * math.sqrt(0.05 * 0.95 / many)
    assert abs(t_wrong / many - 0.05) < spread
    assert abs(interval_wrong / many - 0.05) < spread
    assert mcnemar_wrong / many < 0.05 + spread  # exact: never too often


def test_correction_keeps_the_family_honest() -> None:
    rng = np.random.default_rng(3)
    families_wrong = 0
    for _ in range(200):
        values = rng.normal(size=(30, 2))
        sides = [
            exam({f"r/{i}": bare(v, v - 1.96, v + 1.96) for i, v in enumerate(values[:, k])}) for k in (0, 1)
        ]
        families_wrong += bool(compare(*sides).larger_than_noise())
    assert families_wrong / 200 < 0.05 + 3.5 * math.sqrt(0.05 * 0.95 / 200)


def test_intervals_of_paired_proportions_cover() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(1000):
        first = (rng.random(100) < 0.8).astype(float)
        second = np.where(rng.random(100) < 0.1, 1 - first, first)
        truth = 0.1 * (1 - 2 * 0.8)
        found = only(sampled(first), sampled(second))
        assert found.low is not None and found.high is not None
        covered += found.low <= truth <= found.high
    assert covered / 1000 > 0.93


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(0, 1e2), st.floats(0, 1e2)), min_size=2, max_size=2),
    st.sampled_from(["lower", "higher", ""]),
)
def test_turning_the_comparison_around_turns_its_signs(
    numbers: list[tuple[float, float, float]], better: str
) -> None:
    one, two = (bare(v, v - down, v + up, better=better) for v, down, up in numbers)
    forth, back = only(one, two), only(two, one)
    assert forth.difference == -back.difference
    assert forth.p == pytest.approx(back.p)
    if forth.low is not None and forth.high is not None and back.low is not None and back.high is not None:
        assert forth.low == pytest.approx(-back.high)
        assert forth.low <= forth.difference <= forth.high
    opposite = {"improved": "worse", "worse": "improved"}
    assert back.change == opposite.get(forth.change, forth.change)


def test_text_and_dict() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=100)
    a = exam({"r/i": sampled(base), "r/n": bare(1), "s/c": bare(5, 4, 6)}, "a")
    b = exam(
        {"r/i": sampled(base + 1 + rng.normal(0, 0.1, 100)), "r/n": bare(2), "s/c": bare(5.1, 4, 6)}, "b"
    )
    made: Comparison = compare(a, b)
    text = made.text()
    assert text.index("larger than noise (1)") < text.index("within noise (1)") < text.index("cannot say (1)")
    assert "worse" in text and "2 tests (Holm)" in text
    assert all(line == line.rstrip() or len(line) < 400 for line in text.splitlines())
    plain = json.loads(json.dumps(made.as_dict(), allow_nan=False))
    assert plain["comparable"] is True
    assert [d["instrument"] for d in plain["differences"]] == ["r/i", "r/n", "s/c"]


def test_nothing_in_common() -> None:
    made = compare(exam({}), exam({}))
    assert made.differences == () and "No quantity was measured in both." in made.text()
