"""Groups of runs: scipy's own tests, corrected; and what does not vary is said to."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from microtome.cli.main import run as command
from microtome.errors import UsageError
from microtome.finding import Examination, Finding, Quantity
from microtome.group_comparison import compare_groups
from microtome.store import open_store


def exam(name, values, status="measured"):
    quantities = {"error": Quantity(value=values[0], better="lower"), "rank": Quantity(value=values[1])}
    finding = Finding(headline="error", quantities=quantities, instrument="reliability/made", status=status)
    return Examination(
        id=name,
        created="2026-01-01T00:00:00",
        subject={"name": "net"},
        findings={"reliability/made": finding},
    )


draw = np.random.default_rng(0)
A = [exam(f"a{i}", draw.normal([1.0, 5.0], 0.1)) for i in range(6)]
B = [exam(f"b{i}", draw.normal([0.5, 5.0], 0.2)) for i in range(5)]


def values(exams, key):
    return [e["made"].quantities[key].value for e in exams]


def test_independent_groups_are_welch_t():
    error, rank = compare_groups(A, B).differences
    expected = stats.ttest_ind(values(B, "error"), values(A, "error"), equal_var=False)
    assert error.p == pytest.approx(expected.pvalue) and error.p_holm == pytest.approx(2 * expected.pvalue)
    assert (error.low, error.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert error.change == "improved" and error.larger_than_noise and error.headline
    pooled = np.sqrt(sum(np.var(values(s, "error")) * len(s) for s in (A, B)) / (len(A) + len(B) - 2))
    assert error.effect == pytest.approx(error.difference / pooled)
    assert rank.larger_than_noise is False and rank.change == "same"


def test_pairs_are_paired_t():
    error, _ = compare_groups(A[:5], B, paired=True).differences
    expected = stats.ttest_rel(values(B, "error"), values(A[:5], "error"))
    assert error.p == pytest.approx(expected.pvalue)
    assert (error.low, error.high) == pytest.approx(tuple(expected.confidence_interval()))


def test_false_alarms_come_as_often_as_stated():
    drawn = np.random.default_rng(1)
    alarms = 0
    for _ in range(200):
        sides = [[exam(f"{i}", drawn.normal(size=2)) for i in range(4)] for _ in range(2)]
        alarms += bool(compare_groups(*sides).larger_than_noise())
    assert stats.binomtest(alarms, 200, 0.05, alternative="greater").pvalue > 0.01


def test_what_does_not_vary():
    same = [exam(f"c{i}", (1.0, 2.0)) for i in range(2)]
    other = [exam(f"d{i}", (1.0, 3.0)) for i in range(2)]
    error, rank = compare_groups(same, other).differences
    assert error.larger_than_noise is False and rank.larger_than_noise is True
    assert "no variation between runs" in rank.method


def test_what_only_some_measured_is_listed():
    found = compare_groups([*A[:2], exam("x", (1, 1), status="failed")], B)
    assert not found.differences
    assert found.unpaired[0].a == "measured in 2 of 3"


def test_wrong_groups():
    with pytest.raises(UsageError, match="MT181 groups of 1 and 5 runs"):
        compare_groups(A[:1], B)
    with pytest.raises(UsageError, match="MT181 6 and 5 runs are no pairs"):
        compare_groups(A, B, paired=True)


def test_the_command(tmp_path, capsys):
    with open_store(str(tmp_path)) as store:
        for each in [*A, *B]:
            store.save(each)
    ids = [",".join(e.id for e in side) for side in (A, B)]
    assert command(["compare", *ids, "--store", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "larger than noise (1)" in shown and "Welch's t over 6 and 5 runs" in shown
    assert command(["compare", "a0", "b0,b1", "--store", str(tmp_path)]) == 2
    assert "MT181" in capsys.readouterr().err
