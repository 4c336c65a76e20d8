"""The bound and the slopes found, against dense Jacobians and pairs of inputs."""

import pytest
import torch
from torch import nn

from microtome.instruments.theory.lipschitz import LipschitzConstant
from microtome.passes.run import run_instruments
from microtome.subject import Subject


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(75, 4)]
    model = nn.Sequential(*layers).double()
    model[1].running_var.fill_(0.5)
    return model.eval()


@pytest.mark.parametrize("norm", ["2", "inf", "1"])
def test_slopes_are_those_of_jacobians_and_the_bound_is_above_all_pairs(norm):
    model, n = network(), 24
    x = torch.randn(n, 1, 5, 5, dtype=torch.float64)
    asked = LipschitzConstant(norm=norm, examples=n)
    finding = run_instruments(Subject(model, [(x, torch.arange(n) % 4)]), {"i": asked})["i"]
    order = {"2": 2, "inf": float("inf"), "1": 1}[norm]
    for i in range(n):
        slopes = torch.autograd.functional.jacobian(lambda v: model(v[None])[0], x[i]).flatten(1)
        expected = float(torch.linalg.matrix_norm(slopes, ord=order))
        assert finding.arrays["samples"][i] == pytest.approx(expected)
    with torch.no_grad():
        out = model(x)
    moved = torch.cdist(out, out, p=order) / torch.cdist(x.flatten(1), x.flatten(1), p=order)
    assert float(moved.nan_to_num(0).max()) <= finding.value
    assert finding.quantities["largest slope found"].value <= finding.quantities["upper bound"].value


def test_the_bound_follows_a_scaled_layer():
    model, n = network(), 8
    data = [(torch.randn(n, 1, 5, 5, dtype=torch.float64), torch.arange(n) % 4)]
    before = run_instruments(Subject(model, data), {"i": LipschitzConstant()})["i"]
    with torch.no_grad():
        model[4].weight.mul_(3)
    after = run_instruments(Subject(model, data), {"i": LipschitzConstant()})["i"]
    assert after.value == pytest.approx(3 * before.value)


def test_attention_is_refused_with_its_place():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(32, 3))
    finding = run_instruments(
        Subject(model, [(torch.randn(8, 4, 8), torch.arange(8) % 3)]), {"i": LipschitzConstant()}
    )["i"]
    assert finding.status == "refused"
    assert "attention has no finite constant" in finding.reason
