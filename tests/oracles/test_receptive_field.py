"""Receptive fields against the pixels whose gradient is not zero."""

import pytest
import torch
from reliability_subjects import read
from torch import nn

from microtome.instruments.architect.receptive_field import ReceptiveField


def touched(model, size, row, column):
    """First and last pixel that an entry of the last layer depends on, along both axes, in a linear network."""
    x = torch.rand(1, 1, size, size, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(model(x)[0, 0, row, column], x)
    down, over = (slope[0, 0] != 0).nonzero().T
    return (int(down.min()), int(down.max())), (int(over.min()), int(over.max()))


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3, 2), nn.Conv2d(1, 1, 3, dilation=2)],
        [nn.Conv2d(1, 1, (7, 3), 2, 3), nn.AvgPool2d(3, 2, 1), nn.Conv2d(1, 1, 1)],
    ],
)
def test_agrees_with_the_gradient(layers):
    body = nn.Sequential(*layers).double()
    for parameter in body.parameters():
        nn.init.ones_(parameter)
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)).double()
    finding = read(ReceptiveField(), model, [(torch.rand(8, 1, 41, 41).double(), torch.arange(8) % 2)])
    middle = body(torch.rand(1, 1, 41, 41).double()).shape
    down, over = touched(body, 41, middle[2] // 2, middle[3] // 2)
    assert finding.quantities["height"].value == down[1] - down[0] + 1
    assert finding.quantities["width"].value == over[1] - over[0] + 1
    assert finding.quantities["stride"].value == touched(body, 41, middle[2] // 2 + 1, 3)[0][0] - down[0]
    last = finding.tables["layers"].rows[-1]
    assert last[5] + middle[2] // 2 * last[4] == down[0]


def test_a_network_without_windows_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    finding = read(ReceptiveField(), model, [(torch.rand(8, 1, 8, 8), torch.arange(8) % 2)])
    assert finding.status == "refused"
