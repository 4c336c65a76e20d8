from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from microtome.statistics import normal, student, wilson


@pytest.mark.parametrize(("hits", "total"), [(0, 5), (5, 5), (3, 10), (586, 596), (1, 100000)])
def test_wilson_is_scipys(hits: int, total: int) -> None:
    expected = stats.binomtest(hits, total).proportion_ci(0.95, method="wilson")
    assert wilson(hits, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_student_is_scipys() -> None:
    values = np.array([0.2, 0.5, 0.1, 0.9])
    expected = stats.t.interval(0.9, 3, loc=values.mean(), scale=stats.sem(values))
    assert student(values, 0.9)[1:] == pytest.approx(expected)


def test_normal_covers_what_it_says() -> None:
    assert normal(1.0, 2.0) == pytest.approx((1 - 1.959964 * 2, 1 + 1.959964 * 2), rel=1e-6)
