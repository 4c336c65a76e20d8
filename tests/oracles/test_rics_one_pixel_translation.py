"""One-pixel shifts by padding and cropping, image after image."""

import pytest
import torch
import torch.nn.functional as F
from reliability_subjects import read, same
from torch import nn

from microtome.instruments.reliability.rics_one_pixel_translation import NAMES, OnePixelTranslation
from microtome.signals.expression import Site
from microtome.signals.perturb import Shift

MODES = {"edge": "replicate", "zeros": "constant", "wrap": "circular"}


def network(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)).to(dtype)
    with torch.no_grad():
        model[3].weight *= 5
    return model


def data(dtype, size=16):
    torch.manual_seed(1)
    x, y = torch.rand(40, 2, 6, 8, dtype=dtype), torch.arange(40) % 3
    return [(x[i : i + size], y[i : i + size]) for i in range(0, 40, size)]


def crop(x, dx, dy, padding):
    """Pad by one on all sides, then cut a window that has moved the other way."""
    wide = F.pad(x[None], (1, 1, 1, 1), mode=MODES[padding])[0]
    h, w = x.shape[-2:]
    return wide[:, 1 - dy : 1 - dy + h, 1 - dx : 1 - dx + w]


@pytest.mark.parametrize("padding", sorted(MODES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_cropping(padding, dtype):
    model, batches = network(dtype), data(dtype)
    finding = read(OnePixelTranslation(directions=8, padding=padding), model, batches)
    x = torch.cat([b[0] for b in batches])
    rates = torch.zeros(8, 40)
    for d, (dx, dy) in enumerate(NAMES):
        for i in range(40):
            with torch.no_grad():
                before, after = (model(v[None]).softmax(1)[0] for v in (x[i], crop(x[i], dx, dy, padding)))
            rates[d, i] = before.argmax() != after.argmax()
    assert rates.sum() > 10
    assert finding.value == pytest.approx(float(rates.mean()))
    assert [row[2] for row in finding.tables["directions"].rows] == pytest.approx(rates.mean(1).tolist())
    some = float((rates.sum(0) > 0).float().mean())
    assert finding.quantities["flipped by some shift"].value == pytest.approx(some)
    assert finding.arrays["samples"] == pytest.approx(rates.mean(0).numpy())
    moved = finding.tables["directions"].rows[-1][-1]
    dx, dy = list(NAMES)[-1]
    with torch.no_grad():
        after = model(torch.stack([crop(v, dx, dy, padding) for v in x])).softmax(1)
        gap = (model(x).softmax(1) - after).abs().sum(1) / 2
    assert moved == pytest.approx(float(gap.mean()), rel=1e-4)


@pytest.mark.parametrize("padding", sorted(MODES))
def test_shifts_of_several_pixels_and_bfloat16(padding):
    x = torch.rand(2, 3, 5, 4).bfloat16()
    site = Site(torch.arange(2), None, None, None)
    here = x
    for _ in range(2):
        here = torch.stack([crop(image, 1, -1, padding) for image in here])
    assert torch.equal(Shift(2, -2, padding).apply(x, site), here)


def test_batch_size_does_not_matter():
    model = network(torch.float64)
    same(*(read(OnePixelTranslation(), model, data(torch.float64, size)) for size in (7, 64)))


def test_nothing_flips():
    class Mean(nn.Module):
        def forward(self, x):
            total = x.mean((1, 2, 3))
            return torch.stack([total, -total], 1)

    finding = read(OnePixelTranslation(padding="wrap"), Mean(), [(x, y % 2) for x, y in data(torch.float32)])
    assert finding.value == 0
    assert finding.interval[1] > 0.01


def test_refuses_what_is_no_image():
    flat = [(torch.rand(5, 4), torch.arange(5) % 2)]
    assert "images" in read(OnePixelTranslation(), nn.Linear(4, 2), flat).reason
    mirrored = read(OnePixelTranslation(padding="mirror"), network(torch.float32), data(torch.float32))
    assert "padding" in mirrored.reason
