"""Integrated gradients against a loop over the path, and completeness of the integral."""

import numpy as np
import pytest
import torch
from torch import nn

from microtome.instruments.explain.integrated_gradients import IntegratedGradients, quadrature
from microtome.passes.run import run_instruments
from microtome.subject import Subject

IDS = (0, 5, 17, 30)


def network(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).to(dtype)


def data(dtype: torch.dtype, size: int):
    torch.manual_seed(1)
    x, y = torch.randn(40, 6, dtype=dtype), torch.randint(0, 3, (40,))
    return [(x[i : i + size], y[i : i + size]) for i in range(0, 40, size)]


def read(model, batches, **options):
    return run_instruments(Subject(model, batches), {"i": IntegratedGradients(**options)})["i"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", ["midpoint", "gauss-legendre"])
def test_agrees_with_the_path_by_hand(dtype, rule):
    model, batches = network(dtype), data(dtype, 16)
    finding = read(model, batches, examples=IDS, steps=7, rule=rule, baseline=0.2)
    nodes, weights = quadrature(rule, 7)
    assert sum(weights) == pytest.approx(1.0)
    x = torch.cat([b[0] for b in batches])[list(IDS)]
    classes = model(x).argmax(1)
    mean = torch.zeros_like(x)
    for node, weight in zip(nodes, weights, strict=True):
        point = (0.2 + node * (x - 0.2)).requires_grad_()
        mean += weight * torch.autograd.grad(model(point).gather(1, classes[:, None]).sum(), point)[0]
    truth = (x - 0.2) * mean
    assert finding.arrays["maps"] == pytest.approx(truth.numpy(), rel=1e-4, abs=1e-6)
    with torch.no_grad():
        change = (model(x) - model(torch.full_like(x, 0.2))).gather(1, classes[:, None])[:, 0]
    error = (truth.sum(1) - change).abs().mean() / change.abs().mean()
    assert finding.value == pytest.approx(float(error), rel=0.05, abs=1e-6)


def test_many_points_are_complete():
    finding = read(network(torch.float64), data(torch.float64, 16), steps=40)
    assert finding.value < 1e-10


def test_linear_networks_are_exact():
    torch.manual_seed(3)
    model = nn.Linear(6, 3).double()
    finding = read(model, data(torch.float64, 40), examples=IDS, steps=1)
    x = data(torch.float64, 40)[0][0][list(IDS)]
    classes = model(x).argmax(1)
    assert finding.arrays["maps"] == pytest.approx((x * model.weight.detach()[classes]).numpy(), rel=1e-6)
    assert finding.value == pytest.approx(0.0, abs=1e-12)


def test_batch_size_does_not_matter():
    readings = [read(network(torch.float64), data(torch.float64, size)) for size in (7, 64)]
    for name, quantity in readings[0].quantities.items():
        assert readings[1].quantities[name].value == pytest.approx(quantity.value, rel=1e-6, abs=1e-12)
    assert np.array_equal(readings[0].arrays["rows"], readings[1].arrays["rows"])


def test_refuses_unknown_rules():
    assert "rule" in read(network(torch.float32), data(torch.float32, 16), rule="simpson").reason
    assert read(network(torch.float32), data(torch.float32, 16), steps=0).status == "refused"
