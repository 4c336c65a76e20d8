"""FullGrad: the parts of a score by hand, and what a smooth network lacks."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from microtome.instruments.explain.fullgrad import FullGrad
from microtome.passes.run import run_instruments
from microtome.subject import Subject


class Net(nn.Module):
    """One convolution with batch-norm; functional ReLU."""

    def __init__(self, activation=torch.relu) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(48, 3)
        self.activation = activation

    def forward(self, x):
        return self.head(self.activation(self.norm(self.conv(x))).flatten(1))


def labelled(model, x):
    with torch.no_grad():
        y = model(x).argmax(1)
    return Subject(model, [(x, y)])


def subject(dtype=torch.float64, activation=torch.relu):
    torch.manual_seed(0)
    model = Net(activation)
    with torch.no_grad():
        model(torch.rand(32, 1, 6, 6))
        model.norm.bias.normal_()
        model.head.weight.mul_(5)
    return labelled(model.eval().to(dtype), torch.rand(20, 1, 6, 6, dtype=dtype))


def read(given, **options):
    return run_instruments(given, {"i": FullGrad(**options)})["i"]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_agrees_with_the_parts_by_hand(dtype, tolerance):
    given = subject(dtype)
    finding = read(given)
    assert finding.headline == "completeness error" and finding.value < tolerance
    model = given.model
    ids = torch.as_tensor(finding.arrays["rows"])
    x = given.data[0][0][ids].requires_grad_()
    conv = model.conv(x)
    normed = model.norm(conv)
    out = model.head(torch.relu(normed).flatten(1))
    classes = out.argmax(1)
    score = out.gather(1, classes[:, None])[:, 0]
    slopes = torch.autograd.grad(score.sum(), [x, conv, normed])
    shift = (
        model.norm.bias
        - model.norm.running_mean * model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
    )
    parts = [
        x * slopes[0], slopes[1] * model.conv.bias[:, None, None], slopes[2] * shift[:, None, None]
    ]  # fmt: skip
    biases = parts[1].sum((1, 2, 3)) + parts[2].sum((1, 2, 3)) + model.head.bias[classes]
    table = finding.tables["completeness error"]
    assert table.columns == ("example", "score", "inputs", "biases", "total", "error")
    assert [row[3] for row in table.rows] == pytest.approx(biases.tolist(), rel=1e-4)
    assert finding.quantities["part of the biases"].value == pytest.approx(
        (biases.abs().mean() / score.abs().mean()).item(), rel=1e-4
    )
    expected = torch.zeros(len(ids), 6, 6, dtype=dtype)
    for part in parts:
        flat = part.abs().flatten(1)
        low, high = flat.min(1, keepdim=True).values, flat.max(1, keepdim=True).values
        scaled = ((flat - low) / (high - low + 1e-6)).reshape(part.shape)
        expected += F.interpolate(scaled, size=(6, 6), mode="bilinear", align_corners=True).sum(1)
    assert finding.arrays["maps"] == pytest.approx(expected.detach().numpy(), rel=1e-4)


def test_a_smooth_network_is_incomplete_and_says_so():
    finding = read(subject(activation=F.gelu))
    assert finding.value > 0.01
    assert finding.grade in ("watch", "alarm")


def test_vectors_have_maps_of_the_input_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    x = torch.rand(20, 6, dtype=torch.float64)
    finding = read(labelled(model, x))
    leaf = x[finding.arrays["rows"]].requires_grad_()
    slope = torch.autograd.grad(model(leaf).max(1).values.sum(), leaf)[0]
    assert finding.arrays["maps"] == pytest.approx((leaf * slope).abs().detach().numpy())
    assert finding.value < 1e-10
