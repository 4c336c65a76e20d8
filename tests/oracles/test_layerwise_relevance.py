"""Layer-wise relevance of a small network, sum by sum, and what it refuses."""

import pytest
import torch
from torch import nn

from microtome.instruments.explain.layerwise_relevance import LayerwiseRelevance
from microtome.passes.run import run_instruments
from microtome.subject import Subject

IDS = (1, 4, 6, 20)


class Residual(nn.Module):
    """Functional ReLUs and a residual sum, without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = (
            nn.Linear(5, 5, bias=False),
            nn.Linear(5, 5, bias=False),
            nn.Linear(5, 3, bias=False),
        )

    def forward(self, x):
        y = torch.relu(self.first(x))
        return self.head(y + torch.relu(self.second(y)))


def labelled(model, x, size, **options):
    with torch.no_grad():
        y = model(x).argmax(1)
    batches = [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]
    return Subject(model, batches, **options)


def subject(dtype=torch.float64, size=16, bias=False, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)) if bias else Residual()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 3 if parameter.dim() > 1 else 1
    return labelled(model.to(dtype), 3 * torch.rand(40, 5, dtype=dtype), size, **options)


def read(given, **options):
    return run_instruments(given, {"i": LayerwiseRelevance(**options)})["i"]


def by_hand(model, x, klass):
    """LRP-0: every share is input times weight over their sum, times what arrived."""

    def back(x, layer, relevance):
        share = torch.zeros_like(x)
        for j in range(len(layer.weight)):
            total = sum(float(x[i] * layer.weight[j, i]) for i in range(len(x)))
            for i in range(len(x)):
                share[i] += float(x[i] * layer.weight[j, i]) / total * float(relevance[j]) if total else 0.0
        return share

    y = torch.relu(model.first(x))
    z = torch.relu(model.second(y))
    relevance = torch.zeros(3, dtype=x.dtype)
    relevance[klass] = model.head(y + z)[klass]
    both = back(y + z, model.head, relevance)
    whole = torch.where(y + z > 0, y + z, 1.0)
    to_y = both * y / whole + back(y, model.second, both * z / whole)
    return back(x, model.first, to_y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_shares_by_hand(dtype):
    given = subject(dtype)
    finding = read(given, examples=IDS, composite="zero")
    x = torch.cat([b[0] for b in given.data])[list(IDS)]
    with torch.no_grad():
        classes = given.model(x).argmax(1)
        expected = torch.stack([by_hand(given.model, one, int(c)) for one, c in zip(x, classes, strict=True)])
    assert finding.arrays["maps"] == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-6)
    assert finding.quantities["conservation error"].value < 1e-5
    assert "0.00%" in finding.summary


def test_the_error_is_what_biases_hold():
    given = subject(bias=True)
    finding = read(given, examples=IDS, composite="zero")
    x = torch.cat([b[0] for b in given.data])[list(IDS)].requires_grad_()
    best = given.model(x).max(1).values
    own = (torch.autograd.grad(best.sum(), x)[0] * x).sum(1)
    expected = ((best - own).abs().mean() / best.abs().mean()).item()
    assert finding.quantities["conservation error"].value == pytest.approx(expected, rel=1e-6)
    assert finding.tables["conservation error"].columns == ("example", "score", "total", "error")


def test_batch_size_does_not_matter():
    readings = [read(subject(size=size), examples=IDS) for size in (8, 40)]
    for name, quantity in readings[0].quantities.items():
        assert readings[1].quantities[name].value == pytest.approx(quantity.value, rel=1e-6)


def test_refuses_clearly():
    assert "no composite 'lrp'" in read(subject(), composite="lrp").reason
    assert "bounds" in read(subject(), composite="epsilon-gamma-box").reason
    assert read(subject(bounds=(0, 3)), composite="epsilon-gamma-box").status == "measured"

    class Spectral(nn.Module):
        def forward(self, x):
            return torch.fft.rfft(x).abs()

    x = torch.rand(20, 5)
    reason = read(labelled(Spectral(), x, 20)).reason
    assert "MT310" in reason and "aten._fft_r2c" in reason


def test_the_composites_differ():
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )
    given = labelled(model, torch.rand(20, 1, 6, 6), 20, bounds=(0, 1))
    names = ("epsilon", "epsilon-plus", "epsilon-plus-flat", "epsilon-alpha2-beta1", "epsilon-gamma-box")
    maps = [read(given, composite=name).arrays["maps"] for name in names]
    assert all(m.shape == (16, 6, 6) for m in maps)
    assert all(abs(a - b).max() > 1e-4 for i, a in enumerate(maps) for b in maps[:i])
