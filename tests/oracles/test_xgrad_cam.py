"""XGrad-CAM against the formula, channel by channel."""

import pytest
import torch
from torch import nn

from microtome.instruments.explain.xgrad_cam import XGradCAM
from microtome.passes.run import run_instruments
from microtome.subject import Subject

IDS = (0, 5, 17, 30)


def network(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 8), nn.Tanh(), nn.Linear(8, 3),
    ).to(dtype)  # fmt: skip


def data(dtype: torch.dtype, size: int):
    torch.manual_seed(1)
    x, y = torch.rand(40, 1, 8, 8, dtype=dtype), torch.randint(0, 3, (40,))
    return [(x[i : i + size], y[i : i + size]) for i in range(0, 40, size)]


def read(model, batches, **options):
    return run_instruments(Subject(model, batches), {"x": XGradCAM(**options)})["x"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_the_formula(dtype):
    model, batches = network(dtype), data(dtype, 16)
    finding = read(model, batches, examples=IDS)
    x = torch.cat([b[0] for b in batches])[list(IDS)]
    gaps, scores = [], []
    for i in range(len(IDS)):
        maps = model[:5](x[i : i + 1]).detach().requires_grad_()
        logits = model[5:](maps)[0]
        score = logits.max()
        slope = torch.autograd.grad(score, maps)[0][0]
        cam = torch.zeros(4, 4, dtype=dtype)
        for c in range(5):
            a = maps.detach()[0, c]
            if a.sum() > 0:
                cam += (slope[c] * a).sum() / a.sum() * a
        truth = nn.functional.interpolate(cam.relu()[None, None], (8, 8), mode="bilinear")[0, 0]
        assert finding.arrays["maps"][i] == pytest.approx(truth.numpy(), rel=1e-4, abs=1e-7)
        gaps.append(abs(float(cam.sum()) - float(score.detach())))
        scores.append(abs(float(score.detach())))
    assert finding.quantities["conservation error"].value == pytest.approx(sum(gaps) / sum(scores), rel=1e-4)


def test_dead_channels_count_nothing():
    model = network(torch.float64)
    with torch.no_grad():
        model[3].weight[2] = 0.0
        model[3].bias[2] = -1.0
    assert read(model, data(torch.float64, 16)).status == "measured"


def test_layers_by_name():
    finding = read(network(torch.float32), data(torch.float32, 16), layer="1")
    assert any("8 x 8" in caveat for caveat in finding.caveats)
    assert "not a layer" in read(network(torch.float32), data(torch.float32, 16), layer="9").reason


def test_refuses_without_convolutions():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    assert "convolution" in read(model, data(torch.float32, 16)).reason
    flat = [(torch.rand(20, 6), torch.arange(20) % 3)]
    assert "images" in read(nn.Linear(6, 3), flat).reason


def test_batch_size_does_not_matter():
    readings = [read(network(torch.float64), data(torch.float64, size)) for size in (7, 64)]
    for name, quantity in readings[0].quantities.items():
        assert readings[1].quantities[name].value == pytest.approx(quantity.value, rel=1e-6)
