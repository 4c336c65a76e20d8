"""Errors of values from the formulas, by torchmetrics."""

import functools

import pytest
import torch
from torch import nn
from torchmetrics.functional import mean_absolute_error, mean_squared_error, r2_score

from microtome.instruments.reliability.regression_error import RegressionError
from microtome.passes.run import run_instruments
from microtome.subject import Subject


def network(outputs, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, outputs)).to(dtype)


def data(outputs, dtype=torch.float32, size=64, count=300):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 4, generator=generator, dtype=dtype)
    with torch.no_grad():
        y = (
            network(outputs, dtype)(x)
            + 0.2 * torch.randn(count, outputs, generator=generator, dtype=dtype)
            + 0.1
        )
    return [(x[i : i + size], y[i : i + size]) for i in range(0, count, size)]


def read(model, batches, **options):
    return run_instruments(Subject(model, batches, task="regression", **options), {"i": RegressionError()})[
        "i"
    ]


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_the_formulas(outputs, dtype):
    model, batches = network(outputs, dtype), data(outputs, dtype)
    finding = read(model, batches)
    x, y = (torch.cat([b[i] for b in batches]) for i in range(2))
    with torch.no_grad():
        z = model(x).double()
    y = y.double()
    found = {name: q.value for name, q in finding.quantities.items()}
    assert found["mean squared error"] == pytest.approx(float(mean_squared_error(z, y)), rel=1e-6)
    assert found["root mean squared error"] == pytest.approx(float((z - y).square().mean().sqrt()), rel=1e-6)
    assert found["mean absolute error"] == pytest.approx(float(mean_absolute_error(z, y)), rel=1e-6)
    assert found["bias"] == pytest.approx(float((z - y).mean()), rel=1e-5)
    share = r2_score(z, y, multioutput="variance_weighted")
    assert found["share explained"] == pytest.approx(float(share), rel=1e-6)
    each = r2_score(z, y, multioutput="raw_values").reshape(-1)
    assert [row[4] for row in finding.tables["outputs"].rows] == pytest.approx(each.tolist(), rel=1e-6)


def test_the_interval_covers_as_often_as_it_says():
    """Over fresh samples of examples, the interval of the share covers the share of the whole."""
    model = network(2)
    covered, rounds = 0, 60
    for seed in range(rounds):
        generator = torch.Generator().manual_seed(100 + seed)
        x = torch.randn(200, 4, generator=generator)
        with torch.no_grad():
            y = model(x) + 0.3 * torch.randn(200, 2, generator=generator)
        q = read(model, [(x, y)]).quantities["share explained"]
        covered += q.low <= whole() <= q.high
    assert covered >= 0.85 * rounds


@functools.cache
def whole():
    model, x = network(2), torch.randn(200_000, 4, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        variance = float(model(x).double().var(0).mean())
    return 1 - 0.09 / (variance + 0.09)


def test_targets_that_are_all_the_same_leave_nothing_to_explain():
    x = torch.randn(40, 4)
    finding = read(network(1), [(x, torch.full((40, 1), 2.0))])
    assert "share explained" not in finding.quantities and finding.grade in (None, "")
    assert "nothing to explain" in finding.summary


def test_a_classifier_is_refused_in_words():
    x, y = torch.randn(40, 4), torch.randint(3, (40,))
    finding = run_instruments(Subject(network(3), [(x, y)]), {"i": RegressionError()})["i"]
    assert finding.status == "refused" and "values" in finding.reason
