"""Folds against the plain formula, on any cut of any data, with hypothesis."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from microtome.errors import Refusal
from microtome.folds import (
    Collect,
    Confusion,
    Covariance,
    CrossCovariance,
    GroupedMoments,
    Histogram,
    Moments,
    Quantiles,
    Reservoir,
    Rows,
    Sample,
    Sum,
    TopK,
    row_uniform,
)
from microtome.laws.compare import difference, numbers
from microtome.signals import loss, rows

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def shards(draw, columns: int = 3):
    """(values [n, columns], sizes of the shards): empty and single shards included."""
    sizes = draw(st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(lambda s: sum(s) > 0))
    seed = draw(st.integers(0, 2**31))
    scale = draw(st.sampled_from([1e-6, 1.0, 1e6]))
    shift = draw(st.sampled_from([0.0, 1.0, 1e4]))
    dtype = draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(seed)
    values = (
        torch.randn(sum(sizes), columns, generator=generator, dtype=torch.float64) * scale + shift * scale
    )
    return values.to(dtype), sizes


def pieces(sizes, *columns):
    ends = np.cumsum(sizes).tolist()
    return [tuple(c[end - size : end] for c in columns) for end, size in zip(ends, sizes, strict=True)]


def folded(fold, sizes, *columns):
    """The result, with states written down and read back between merges, in both directions."""
    states = [fold.lift(*piece) for piece in pieces(sizes, *columns)]
    states = [
        s if s is None else load(save({k: v.contiguous().clone() for k, v in s.items()})) for s in states
    ]
    copies = [s if s is None else {k: v.clone() for k, v in s.items()} for s in states]
    left = fold.read(reduce(fold.join, states, None))
    right = fold.read(reduce(lambda a, b: fold.join(b, a), reversed(copies), None))
    gap = difference(numbers(left), numbers(right), 1e-9, 1e-9)
    assert gap is None, gap
    return left


def close(found, expected, values, rtol=1e-6):
    """Within the rounding of the values' own precision."""
    eps = torch.finfo(values.dtype).eps if values.dtype != torch.bfloat16 else torch.finfo(torch.float64).eps
    scale = float(values.double().abs().max().clamp_min(1e-300))
    power = 2 if found.dim() > 1 or rtol > 1e-6 else 1
    torch.testing.assert_close(found, expected, rtol=rtol, atol=20 * eps * scale**power)


@quick
@given(shards())
def test_moments(data):
    values, sizes = data
    found = folded(Moments(signals=(loss,)), sizes, values)
    x = values.double()
    assert found.count == len(x)
    close(found.mean, x.mean(0), values)
    eps = torch.finfo(torch.float32).eps if values.dtype == torch.float32 else 1e-12
    spread = x.abs().amax(0).square() * eps * 20
    expected = (x - x.mean(0)).square().sum(0) / max(len(x) - 1, 1)
    assert bool(((found.variance - expected).abs() <= spread + 1e-5 * found.variance).all())
    assert torch.equal(found.minimum, x.amin(0)) and torch.equal(found.maximum, x.amax(0))


@quick
@given(shards())
def test_covariance(data):
    values, sizes = data
    found = folded(Covariance(signals=(loss,)), sizes, values)
    x = values.double()
    centred = x - x.mean(0)
    torch.testing.assert_close(found.mean, x.mean(0))
    expected = centred.T @ centred / max(len(x) - 1, 1)
    scale = float(x.abs().max()) ** 2
    torch.testing.assert_close(found.covariance, expected, rtol=1e-9, atol=1e-12 * scale)


@quick
@given(shards(5))
def test_cross_covariance(data):
    values, sizes = data
    a, b = values[:, :2], values[:, 2:]
    n, mean_a, mean_b, cross = folded(CrossCovariance(signals=(loss, loss)), sizes, a, b)
    x, y = a.double(), b.double()
    assert n == len(x)
    torch.testing.assert_close(mean_a, x.mean(0))
    torch.testing.assert_close(mean_b, y.mean(0))
    expected = (x - x.mean(0)).T @ (y - y.mean(0)) / max(len(x) - 1, 1)
    torch.testing.assert_close(
        cross, expected, rtol=1e-9, atol=1e-12 * float(values.double().abs().max()) ** 2
    )


@quick
@given(shards(), st.booleans())
def test_grouped_moments(data, full):
    values, sizes = data
    group = torch.arange(len(values)) * 7 % 4
    found = folded(GroupedMoments(signals=(loss, loss), groups=5, full=full), sizes, values, group)
    x = values.double()
    assert found.count.tolist() == [int((group == g).sum()) for g in range(5)]
    scatter = torch.zeros(3, 3, dtype=torch.float64)
    own = torch.zeros(5, dtype=torch.float64)
    for g in range(5):
        members = x[group == g]
        if len(members):
            torch.testing.assert_close(found.mean[g], members.mean(0))
            centred = members - members.mean(0)
            scatter += centred.T @ centred
            own[g] = centred.square().sum()
        else:
            assert not found.mean[g].any()
    scale = 1e-11 * float(x.abs().max()) ** 2
    torch.testing.assert_close(found.within, scatter if full else own, rtol=1e-9, atol=scale)


@quick
@given(shards())
def test_sum(data):
    values, sizes = data
    parts = [v.sum(0) for (v,) in pieces(sizes, values.double())]
    fold = Sum(signals=(loss,))
    found = fold.read(reduce(fold.join, [fold.lift(p) for p in parts], None))
    torch.testing.assert_close(
        found, values.double().sum(0), rtol=1e-9, atol=1e-9 * float(values.double().abs().sum())
    )


@quick
@given(shards())
def test_histogram_counts_everything(data):
    values, sizes = data
    fold = Histogram(signals=(loss, loss), bins=8, low=-1.0, high=1.0)
    edges, counts, sums = folded(fold, sizes, values, values)
    assert int(counts.sum()) == values.numel()
    assert len(edges) == 9
    x = values.flatten()
    middle = ((x > -1) & (x < 1)).double().sum()
    expected = np.histogram(values.double().clamp(-1, 1).numpy(), bins=8, range=(-1, 1))[0]
    assert int(counts.sum()) == int(expected.sum())
    assert int(counts[1:-1].sum()) <= int(middle)
    torch.testing.assert_close(
        sums.sum(), x.double().sum(), rtol=1e-6, atol=1e-6 * float(x.double().abs().sum())
    )


@quick
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(lambda s: sum(s) > 0), st.integers(0, 10**6)
)
def test_confusion(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    predicted, true = (torch.randint(0, 4, (sum(sizes),), generator=generator) for _ in range(2))
    found = folded(Confusion(signals=(loss, loss), classes=4), sizes, predicted, true)
    expected = torch.zeros(4, 4, dtype=torch.long)
    for p, t in zip(predicted.tolist(), true.tolist(), strict=True):
        expected[t, p] += 1
    assert torch.equal(found, expected)


@quick
@given(shards(), st.randoms())
def test_collect_and_top_and_reservoir_do_not_depend_on_the_order(data, random):
    values, sizes = data
    n = len(values)
    order = list(range(n))
    random.shuffle(order)
    ids = torch.arange(n)
    key = (values[:, 0].double() * 2).round() / 2  # with ties
    kept = folded(Collect(signals=(rows, loss)), sizes, ids[order], values[order])
    assert torch.equal(kept[0], ids) and torch.equal(kept[1], values)
    top = folded(TopK(signals=(rows, loss, loss), count=4), sizes, ids[order], key[order], values[order])
    best = sorted(range(n), key=lambda i: (-float(key[i]), i))[:4]
    assert top[0].tolist() == best
    assert torch.equal(top[2], values[best])
    least = folded(TopK(signals=(rows, loss), count=4, largest=False), sizes, ids[order], key[order])
    assert least[0].tolist() == sorted(range(n), key=lambda i: (float(key[i]), i))[:4]
    some = folded(Reservoir(signals=(rows, loss), count=5, seed=3), sizes, ids[order], values[order])
    chosen = sorted(sorted(range(n), key=lambda i: float(row_uniform(ids[i : i + 1], 3)))[:5])
    assert some[0].tolist() == chosen
    assert torch.equal(some[1], values[chosen])


@quick
@given(shards())
def test_quantiles_are_close(data):
    values, sizes = data
    at = folded(Quantiles(signals=(loss,)), sizes, values)
    x = values.double().flatten()
    for p in (0.0, 0.1, 0.5, 0.9, 1.0):
        ordered = x.sort().values
        exact = float(ordered[max(min(int(np.ceil(p * len(x))) - 1, len(x) - 1), 0)])
        assert at(p) == pytest.approx(exact, rel=0.04, abs=2e-12)


# ------------------------------------------------------------------------------------------- edges


ALL = [
    Moments(signals=(loss,)),
    Covariance(signals=(loss,)),
    CrossCovariance(signals=(loss, loss)),
    GroupedMoments(signals=(loss, loss), groups=2),
    Histogram(signals=(loss,), bins=4, low=0, high=1),
    Confusion(signals=(loss, loss), classes=2),
    Collect(signals=(rows, loss)),
    TopK(signals=(rows, loss), count=2),
    Reservoir(signals=(rows, loss), count=2),
    Quantiles(signals=(loss,)),
]


@pytest.mark.parametrize("fold", ALL, ids=lambda f: type(f).__name__)
def test_no_row_is_no_state_and_reading_it_refuses(fold):
    empty = torch.zeros(0, 3) if not isinstance(fold, (TopK, Confusion)) else torch.zeros(0)
    ids = torch.zeros(0, dtype=torch.long)
    given = (ids if fold.signals[0] is rows else empty, ids if isinstance(fold, GroupedMoments) else empty)
    assert fold.lift(*given[: len(fold.signals)]) is None
    assert fold.join(None, None) is None
    with pytest.raises(Refusal, match="no row"):
        fold.read(None)


@pytest.mark.parametrize(
    "fold", [Moments(signals=(loss,)), Covariance(signals=(loss,))], ids=lambda f: type(f).__name__
)
def test_one_row_has_no_variance(fold):
    found = fold.read(fold.lift(torch.tensor([[1.0, 2.0]])))
    assert found.count == 1
    assert not (found.variance if isinstance(fold, Moments) else found.covariance).any()


def test_large_means_do_not_cancel():
    x = 1e8 + torch.randn(1000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = folded(Moments(signals=(loss,)), [100] * 10, x)
    assert float(found.variance) == pytest.approx(float(x.var()), rel=1e-6)


@pytest.mark.parametrize(
    "fold", [Moments(signals=(loss,)), Sum(signals=(loss,)), Collect(signals=(rows, loss))]
)
def test_rows_of_different_shape_are_refused_not_broadcast(fold):
    first = (torch.arange(2), torch.ones(2, 1, 3)) if len(fold.signals) == 2 else (torch.ones(2, 1, 3),)
    second = (torch.arange(2, 4), torch.ones(2, 5, 3)) if len(fold.signals) == 2 else (torch.ones(2, 5, 3),)
    with pytest.raises(Refusal, match="different shape"):
        fold.join(fold.lift(*first), fold.lift(*second))


def test_collecting_too_much_is_refused():
    fold = Collect(signals=(rows, loss), limit=1000)
    state = fold.lift(torch.arange(50), torch.zeros(50))
    with pytest.raises(Refusal, match="sample of the rows"):
        reduce(fold.join, [dict(state) for _ in range(3)], None)


# --------------------------------------------------------------------------------------- choosing rows


@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 50))
@quick
def test_samples_are_fixed_sorted_and_nested(total, count, seed):
    small, large = Sample(count, seed).rows(total), Sample(count + 7, seed).rows(total)
    if total <= count:
        assert small is None
        return
    assert len(small) == len(small.unique()) == count
    assert torch.equal(small, small.sort().values)
    assert torch.equal(small, Sample(count, seed).rows(total))
    if large is not None:
        assert set(small.tolist()) <= set(large.tolist())


def test_samples_of_different_seeds_differ():
    assert not torch.equal(Sample(50, 0).rows(1000), Sample(50, 1).rows(1000))


def test_rows_are_checked():
    assert Rows((7, 3, 3)).rows(10).tolist() == [3, 7]
    with pytest.raises(Refusal, match=r"example 10 does not exist: the data has 10 \(0..9\)"):
        Rows((3, 10)).rows(10)
    with pytest.raises(Refusal, match="example -1 does not exist"):
        Rows((-1,)).rows(10)


def test_row_uniform_is_uniform_and_depends_on_nothing_but_its_counters():
    ids = torch.arange(20000)
    u = row_uniform(ids, 5)
    assert float(u.min()) >= 0 and float(u.max()) < 1
    assert abs(float(u.mean()) - 0.5) < 4 / np.sqrt(12 * len(ids))
    assert torch.equal(u[::3], row_uniform(ids[::3], 5))
    correlation = np.corrcoef(u.numpy(), row_uniform(ids, 6).numpy())[0, 1]
    assert abs(correlation) < 4 / np.sqrt(len(ids))
    assert abs(np.corrcoef(u[:-1].numpy(), u[1:].numpy())[0, 1]) < 4 / np.sqrt(len(ids))


def test_more_than_a_hundred_signals_come_back_in_their_order():
    values = [torch.arange(3), *(torch.full((3,), float(i)) for i in range(1, 120))]
    for fold in (Collect(signals=()), Reservoir(signals=(), count=9), TopK(signals=(), count=3)):
        found = fold.result(fold.lift(*values))
        assert [float(v[0]) for v in found[1:]] == [float(i) for i in range(1, 120)]
