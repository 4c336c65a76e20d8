"""Statistics over members: against scipy, closed forms and slow loops."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import stats

import microtome.comparison
from microtome.errors import UsageError
from microtome.population.statistics import (
    bootstrap,
    calibrated_variance,
    cohen_d,
    holm,
    paired_difference,
    run_variance,
    shared_outcomes,
)

RNG = np.random.default_rng(3)


def test_paired_differences_are_scipys():
    a, b = RNG.normal(1, 2, 12), RNG.normal(0, 1, 12)
    found = paired_difference(a, torch.from_numpy(b))
    expected = stats.ttest_rel(a, b)
    interval = expected.confidence_interval(0.95)
    assert (found.mean, found.p) == pytest.approx(((a - b).mean(), expected.pvalue))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.effect == pytest.approx(expected.statistic / 12**0.5)
    percentile = stats.bootstrap(
        (a - b,), np.mean, method="percentile", n_resamples=9999, rng=np.random.default_rng(1)
    ).confidence_interval
    assert (found.bootstrap_low, found.bootstrap_high) == pytest.approx(
        (percentile.low, percentile.high), abs=0.05
    )


def test_differences_that_do_not_vary():
    same = paired_difference([1.0, 2.0], [1.0, 2.0])
    assert (same.mean, same.p, same.effect) == (0.0, 1.0, None)
    assert paired_difference([2.0, 3.0], [1.0, 2.0]).p == 0.0
    with pytest.raises(UsageError, match="MT490"):
        paired_difference([1.0], [1.0])
    with pytest.raises(UsageError, match="MT490"):
        paired_difference([1.0, 2.0], [1.0, 2.0, 3.0])


def test_effect_size_by_hand():
    # means 2 and 5, both of variance 1: three standard deviations apart
    assert cohen_d([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]) == pytest.approx(-3.0)
    assert cohen_d([1.0, 1.0], [1.0, 1.0]) is None
    # differences -1, -2, -3
    assert cohen_d([1.0, 2.0, 3.0], [2.0, 4.0, 6.0], paired=True) == pytest.approx(-2.0)


def test_holm_is_one_function():
    assert holm is microtome.comparison.holm
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_bootstrap_covers_as_often_as_it_says():
    hits = 0
    for trial in range(200):
        _, low, high = bootstrap(np.mean, RNG.normal(0, 1, 40), resamples=200, seed=trial)
        hits += low < 0 < high
    assert 0.89 < hits / 200 <= 0.99
    value, low, high = bootstrap(lambda a, b: float(a.mean() - b.mean()), [1.0, 1.0], [3.0, 3.0], resamples=9)
    assert value == low == high == -2.0


def test_distribution_variance_is_the_mean_covariance_of_all_halves():
    correct = RNG.random((7, 6)) < 0.6
    found = run_variance(correct)
    halves = []
    for half in combinations(range(6), 3):
        other = [j for j in range(6) if j not in half]
        halves.append(np.cov(correct[:, half].mean(1), correct[:, other].mean(1))[0, 1])
    assert found.distribution == pytest.approx(np.mean(halves))
    assert found.test_set == pytest.approx(correct.mean(1).var(ddof=1))
    assert found.independent == pytest.approx(correct.astype(float).var(0, ddof=1).sum() / 36)
    # The same from losses instead of outcomes: any value of an example may be given.
    assert run_variance(correct * 2.0).test_set == pytest.approx(4 * found.test_set)
    assert run_variance(correct * 2.0).independent == pytest.approx(4 * found.independent)
    with pytest.raises(UsageError, match="MT491"):
        run_variance(correct[:1])


def test_planted_variances_are_found():
    easy = RNG.random(400)
    independent = run_variance(RNG.random((600, 400)) < easy)
    assert independent.ratio == pytest.approx(1, abs=0.25)
    assert abs(independent.share) < 0.25
    skill = RNG.normal(0, 0.1, (600, 1))  # runs that are better or worse everywhere: variance 0.01
    varying = run_variance(RNG.random((600, 400)) < np.clip(0.5 + skill, 0, 1))
    assert varying.distribution == pytest.approx(0.01, rel=0.2)
    assert varying.share > 0.9


def test_calibrated_votes_of_two_classes_vary_by_error_over_2n():
    q = RNG.random(300)
    labels = RNG.random(300) < q
    answers = torch.from_numpy(RNG.random((3000, 300)) < q).long()
    error, variance = calibrated_variance(answers, 2)
    assert variance == pytest.approx(error / (2 * 300))
    correct = answers.numpy() == labels
    assert error == pytest.approx(1 - correct.mean(), abs=0.06)
    assert run_variance(correct).independent == pytest.approx(variance, rel=0.05)


def test_shared_outcomes():
    observed, null = shared_outcomes(RNG.random((20, 3000)) < 0.7)
    assert observed / null == pytest.approx(1, abs=0.1)
    same = np.repeat(RNG.random((1, 500)) < 0.7, 20, 0)
    observed, null = shared_outcomes(same)
    assert observed / null == pytest.approx(20)
