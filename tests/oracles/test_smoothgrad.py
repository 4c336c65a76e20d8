"""SmoothGrad against a loop over noisy copies."""

import pytest
import torch
from torch import nn

from microtome.instruments.explain.input_gradient import InputGradient
from microtome.instruments.explain.smoothgrad import SmoothGrad
from microtome.passes.run import run_instruments
from microtome.signals.noise import row_normal
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
    return run_instruments(Subject(model, batches), {"s": SmoothGrad(**options)})["s"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_noisy_copies_by_hand(dtype):
    model, batches = network(dtype), data(dtype, 16)
    finding = read(model, batches, examples=IDS, copies=5, noise=0.3, seed=2)
    x = torch.cat([b[0] for b in batches])
    for i, row in enumerate(IDS):
        klass, span = int(model(x[row]).argmax()), float(x[row].max() - x[row].min())
        total = torch.zeros_like(x[row])
        for copy in range(5):
            noise = row_normal(row * 6 + torch.arange(6), 2, copy).to(dtype)
            point = (x[row] + 0.3 * span * noise).requires_grad_()
            total += torch.autograd.grad(model(point)[klass], point)[0] / 5
        assert finding.arrays["maps"][i] == pytest.approx(total.abs().numpy(), rel=1e-4)


def test_without_noise_it_is_the_gradient():
    subject = Subject(network(torch.float64), data(torch.float64, 16))
    found = run_instruments(subject, {"s": SmoothGrad(noise=0.0, copies=3), "i": InputGradient()})
    assert found["s"].arrays["maps"] == pytest.approx(found["i"].arrays["maps"], rel=1e-6)


def test_batch_size_does_not_matter():
    readings = [read(network(torch.float64), data(torch.float64, size)) for size in (7, 64)]
    for name, quantity in readings[0].quantities.items():
        assert readings[1].quantities[name].value == pytest.approx(quantity.value, rel=1e-6)


def test_refuses_no_copies():
    assert read(network(torch.float32), data(torch.float32, 16), copies=0).status == "refused"
