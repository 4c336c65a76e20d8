"""Gradient noise against one example after another."""

import numpy as np
import pytest
import torch
from torch import nn

from microtome.instruments.dynamics.gradient_noise import GradientNoise
from microtome.passes.run import run_instruments
from microtome.subject import Subject


def network(dtype: torch.dtype, classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, classes)).to(dtype)


def data(dtype: torch.dtype, size: int, rows: int = 40):
    torch.manual_seed(1)
    x, y = torch.randn(rows, 5, dtype=dtype), torch.randint(0, 3, (rows,))
    return [(x[i : i + size], y[i : i + size]) for i in range(0, rows, size)]


def read(model, batches, **options):
    return run_instruments(Subject(model, batches), {"g": GradientNoise(**options)})["g"]


def oracle(model, batches):
    gradients = []
    for x, y in batches:
        for i in range(len(x)):
            loss = nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
            gradients.append(
                torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
            )
    table = torch.stack(gradients).double()
    n, mean = len(table), table.mean(0)
    noise = (table - mean).square().sum() / (n - 1)
    return table, float(noise), float(mean.square().sum() - noise / n)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_single_gradients(dtype):
    model, batches = network(dtype), data(dtype, 16)
    table, noise, signal = oracle(model, batches)
    finding = read(model, batches)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-9
    assert finding.quantities["signal to noise"].value == pytest.approx(signal / noise, rel=tolerance)
    assert finding.quantities["gradient norm"].value == pytest.approx(
        float(table.mean(0).norm()), rel=tolerance
    )
    assert finding.arrays["squared_norms"].sum(1) == pytest.approx(
        table.square().sum(1).numpy(), rel=tolerance
    )


def test_interval_agrees_with_the_jackknife_over_examples():
    model, batches = network(torch.float64), data(torch.float64, 40)
    table, _, _ = oracle(model, batches)

    def ratio(rows):
        n, mean = len(rows), rows.mean(0)
        noise = (rows - mean).square().sum() / (n - 1)
        return float((mean.square().sum() - noise / n) / noise)

    left_out = np.array([ratio(torch.cat([table[:i], table[i + 1 :]])) for i in range(len(table))])
    error = np.sqrt((len(table) - 1) * left_out.var())
    quantity = read(model, batches).quantities["signal to noise"]
    assert quantity.high - quantity.value == pytest.approx(2.13 * error, rel=0.5)  # 15 degrees of freedom


def test_batch_size_does_not_matter():
    readings = [read(network(torch.float64), data(torch.float64, size)) for size in (7, 64)]
    for name, quantity in readings[0].quantities.items():
        assert readings[1].quantities[name].value == pytest.approx(quantity.value, rel=1e-6)


def test_edges():
    model = network(torch.float32)
    one = [(torch.randn(1, 5), torch.tensor([0]))]
    assert read(model, one).status == "refused"
    same = [(torch.ones(8, 5), torch.zeros(8, dtype=torch.long))]
    assert "same gradient" in read(model, same).reason
    few = read(model, data(torch.float32, 3, rows=3))
    assert few.status == "measured"
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(50.0)  # saturated: no gradient reaches the first layer
    dead = read(model, data(torch.float32, 16))
    assert dead.status == "measured"
    assert any("no gradient reaches 0.weight" in c for c in dead.caveats)


def test_scale_is_that_of_the_sampling_noise():
    """Over many draws the estimate of 1/B is right in the mean: two gradients of known mean and variance."""
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    torch.manual_seed(3)
    values = []
    for _ in range(40):
        y = 1.0 + 2.0 * torch.randn(64, 1)
        finding = read(model, [(torch.ones(64, 1), y)])
        values.append(finding.quantities["signal to noise"].value)
    assert np.mean(values) == pytest.approx(0.25, abs=4 * np.std(values) / np.sqrt(40))
