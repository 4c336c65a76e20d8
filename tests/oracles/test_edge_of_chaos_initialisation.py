"""chi, variances and cosines against loops over units, and chi against gradients of wide networks."""

import math

import pytest
import torch
from torch import nn

from microtome.instruments.theory.edge_of_chaos_initialisation import EdgeOfChaos
from microtome.nn.critical import critical_
from microtome.passes.run import run_instruments
from microtome.subject import Subject


def finding_of(model, x):
    data = [(x, torch.arange(len(x)) % 2)]
    return run_instruments(Subject(model, data, task="classification"), {"i": EdgeOfChaos(examples=len(x))})[
        "i"
    ]


def test_what_is_measured_is_what_units_do():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(36, 6), nn.ReLU(), nn.Linear(6, 2)
    ).double()
    x = torch.randn(5, 2, 5, 5, dtype=torch.float64)
    finding = finding_of(model, x)
    for row, cut in zip(finding.tables["layers"].rows, (1, 4, 6), strict=True):
        with torch.no_grad():
            z = model[:cut](x).flatten(1)
        assert row[2] == z.shape[1]
        assert row[6] == pytest.approx(float(sum(v * v for v in z.flatten())) / z.numel())
        pairs = [(i, j) for i in range(5) for j in range(i)]
        cosines = [float(z[i] @ z[j] / z[i].norm() / z[j].norm()) for i, j in pairs]
        assert row[8] == pytest.approx(sum(cosines) / len(pairs))
    for row, layer in zip(finding.tables["layers"].rows, (model[0], model[3], model[5]), strict=True):
        assert row[3] == pytest.approx(float(layer.weight.detach().flatten(1).square().sum(1).mean()) ** 0.5)
    assert finding.tables["layers"].rows[2][5] == pytest.approx(finding.tables["layers"].rows[2][3] ** 2 / 2)


@pytest.mark.parametrize(("function", "scale"), [(nn.ReLU, 1.0), (nn.Tanh, 1.4), (nn.GELU, 0.8)])
def test_the_factor_of_all_stages_is_that_of_gradients(function, scale):
    """The squared gradient by a unit's input, summed over units, of a wide network's random outputs."""
    width, ratios, told = 512, [], []
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        layers = [nn.Linear(width, width)]
        for _ in range(3):
            layers += [function(), nn.Linear(width, width)]
        model = nn.Sequential(*layers)
        critical_(model, function(), generator=generator)
        with torch.no_grad():
            for layer in model[::2]:
                layer.weight.mul_(scale)
        x = torch.randn(4, width, generator=generator)
        first = model[0](x).detach().requires_grad_()
        ends = torch.randn(4, width, generator=generator)
        gradient = torch.autograd.grad(model[1:](first), first, ends)[0]
        ratios.append(float(gradient.square().sum() / ends.square().sum()))
        told.append(finding_of(model, x).quantities["gradient factor of all stages"].value)
    gap = torch.tensor([math.log(a / b) for a, b in zip(ratios, told, strict=True)])
    error = float(gap.std()) / math.sqrt(len(gap))
    assert abs(float(gap.mean())) < 5 * error  # Student t of 11: a level of 4e-4
    assert error < 0.05


def test_what_has_no_prediction_is_refused_with_its_place():
    x = torch.randn(8, 1, 6, 6)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2))
    finding = finding_of(model, x)
    assert finding.status == "refused"
    assert "max_pool2d" in finding.reason
    assert "one layer" in finding_of(nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), x).reason


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        h = self.first(x)
        return self.last(torch.relu(h + self.inner(torch.tanh(h)))).softmax(1)


def test_sums_of_branches_are_said_and_a_softmax_at_the_end_does_no_harm():
    torch.manual_seed(0)
    finding = finding_of(Branches(), torch.randn(8, 5))
    assert finding.status == "measured"
    assert "1 sums of branches" in finding.caveats[0]
    assert len(finding.tables["layers"].rows) == 3
