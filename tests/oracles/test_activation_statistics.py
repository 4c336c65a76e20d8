"""Statistics of units against the whole activation tensor at once."""

from functools import reduce

import pytest
import torch
from represent_subjects import activations, batches, close, data, network, read, subject
from torch import Tensor, nn

from microtome.folds.units import UnitStatistics
from microtome.instruments.represent.activation_statistics import ActivationStatistics
from microtome.signals import activation, rows
from microtome.subject import Subject


def rows_of(finding):
    return {
        row[0]: dict(zip(finding.tables["layers"].columns, row, strict=True))
        for row in finding.tables["layers"].rows
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_the_whole_tensor(dtype):
    found = rows_of(read(subject(dtype), ActivationStatistics()))
    for name, value in activations(dtype).items():
        units = value.movedim(1, -1).flatten(0, -2).double()
        mean, sd = units.mean(0), units.std(0, correction=0)
        row = found[name]
        assert row["mean"] == pytest.approx(float(mean.mean()), rel=1e-5)
        assert row["sd"] == pytest.approx(float(units.std(correction=0)), rel=1e-5)
        assert row["sparsity"] == pytest.approx(float((units == 0).double().mean()), abs=1e-12)
        assert row["outlier"] == pytest.approx(float(((units - mean).abs() / sd).max()), rel=1e-4)


@pytest.mark.parametrize("slices", [1, 7, 64])
def test_slices_do_not_matter(slices):
    close(
        read(subject(torch.float64), ActivationStatistics()),
        read(subject(torch.float64, size=7), ActivationStatistics(), slices),
    )


class Planted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(x) * 1.0


def test_dead_constant_and_large_means():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 4, generator=generator) * 1e-3 + 1000
    x[:, 0] = -1.0
    x[:, 1] = 3.0
    row = rows_of(read(Subject(Planted(), batches(x, torch.zeros(40, 4) + x)), ActivationStatistics()))[
        "relu"
    ]
    assert (row["dead"], row["constant"], row["saturated"]) == (1, 2, None)
    # Whatever the mean, float32 values keep the deviation they have.
    fold = UnitStatistics(signals=(activation("relu"),), dimension=1)
    grid = x.reshape(40, 4, 1, 1).expand(40, 4, 5, 5).contiguous()
    got = fold.result(fold.lift(grid))
    assert got.variance[2:].sqrt().tolist() == pytest.approx(
        x[:, 2:].double().std(0, correction=0).tolist(), rel=1e-6
    )
    assert got.variance[:2].tolist() == [0, 0]


@pytest.mark.parametrize("dimension", [1, -1, 3])
def test_fold_on_any_layout(dimension):
    x = torch.randn(5, 3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).relu()
    fold = UnitStatistics(signals=(activation("a"),), dimension=dimension, bounds=(0.0, 2.0), margin=0.1)
    whole = fold.result(fold.merge(fold.lift(x[:2]), fold.lift(x[2:])))
    units = x.movedim(dimension, -1).flatten(0, -2)
    torch.testing.assert_close(whole.mean, units.mean(0))
    torch.testing.assert_close(whole.variance, units.var(0, correction=0))
    torch.testing.assert_close(whole.zeros, (units == 0).double().mean(0))
    torch.testing.assert_close(whole.edges, ((units <= 0.1) | (units >= 1.9)).double().mean(0))
    assert torch.equal(whole.maximum, units.amax(0))


@pytest.mark.parametrize("layout", ["map", "vector", "sequence"])
@pytest.mark.parametrize("cut", [(12,), (1, 0, 4, 7), (5, 5, 2)])
def test_the_examples_that_excite_a_unit(layout, cut):
    generator = torch.Generator().manual_seed(0)
    shape, dimension = {"map": ((5, 3, 4), 1), "vector": ((5,), 1), "sequence": ((3, 5), 2)}[layout]
    x = torch.randn(12, *shape, generator=generator)
    x[[3, 8]] = x[[1, 1]]  # equal ones: the smaller id comes first
    ids = torch.randperm(100, generator=generator)[:12]
    fold = UnitStatistics(signals=(activation("a"), rows), dimension=dimension, keep=4, widest=4)
    states = [
        s for p, i in zip(x.split(cut), ids.split(cut), strict=True) if (s := fold.lift(p, i)) is not None
    ]
    found = fold.result(reduce(fold.merge, reversed(states)))
    peaks = x.movedim(dimension, -1).reshape(12, -1, 5).amax(1)
    for sign, (chosen, values) in ((-1, found.most), (1, found.least)):
        assert chosen.shape == values.shape == (4, 4)
        for unit in range(4):
            order = sorted(range(12), key=lambda i: (sign * float(peaks[i, unit]), int(ids[i])))[:4]
            assert chosen[unit].tolist() == ids[order].tolist()
            torch.testing.assert_close(values[unit], peaks[order, unit], rtol=1e-4, atol=0)


def test_exciting_examples_are_in_the_finding():
    finding = read(subject(torch.float64), ActivationStatistics(kept=3))
    for name, value in activations(torch.float64).items():
        peaks = value.movedim(1, -1).reshape(len(value), -1, value.shape[1]).amax(1)
        ids = torch.from_numpy(finding.arrays[f"most exciting/{name}"])
        assert ids.shape == (value.shape[1], 3)
        best = peaks.topk(3, dim=0).values.T
        torch.testing.assert_close(peaks.T.gather(1, ids), best, rtol=1e-4, atol=1e-9)
    none = read(subject(torch.float64), ActivationStatistics(kept=0))
    assert not any("excit" in key for key in none.arrays)


def test_one_example_and_half_precision():
    x, y = data(torch.float32)
    one = read(Subject(network(torch.float32), batches(x[:1], y[:1])), ActivationStatistics())
    assert one.status == "measured" and one.caveats
    half = Subject(network(torch.bfloat16), batches(x.bfloat16(), y))
    assert read(half, ActivationStatistics(threshold=1e-3)).status == "measured"
