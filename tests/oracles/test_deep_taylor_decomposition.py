"""Deep Taylor decomposition of a two-layer network, from the formulas of the paper."""

import pytest
import torch
from torch import nn

from microtome.instruments.explain.deep_taylor_decomposition import DeepTaylorDecomposition
from microtome.laws.subjects import images
from microtome.passes.run import run_instruments
from microtome.subject import Subject


def subject(*, sign=1.0, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        model[0].bias.copy_(-model[0].bias.abs() / 4)
        model[2].bias.copy_(-model[2].bias.abs() / 4)
        model[2].weight.abs_().mul_(3 * sign)
    x = 3 * torch.rand(20, 6, dtype=torch.float64)
    with torch.no_grad():
        y = model(x).argmax(1)
    return Subject(model, [(x, y)], **options)


def read(given, **options):
    return run_instruments(given, {"i": DeepTaylorDecomposition(**options)})["i"]


@pytest.mark.parametrize("bounds", [None, (0.0, 3.0)])
def test_agrees_with_the_paper(bounds):
    given = subject(bounds=bounds)
    finding = read(given)
    ids = finding.arrays["rows"]
    x = given.data[0][0][ids]
    first, second = given.model[0].weight.detach(), given.model[2].weight.detach()
    with torch.no_grad():
        hidden = torch.relu(given.model[0](x))
        out = given.model(x)
    for n in range(len(ids)):
        c = int(out[n].argmax())
        z = hidden[n] * second[c].clamp(min=0)
        upper = z / z.sum() * out[n, c]
        expected = torch.zeros(6, dtype=torch.float64)
        for j in range(8):
            boxed = x[n] * first[j] - 3 * first[j].clamp(max=0)
            q = first[j].square() if bounds is None else boxed
            expected += q / q.sum() * upper[j]
        assert finding.arrays["maps"][n] == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-6)
    assert finding.headline == "conservation error"
    assert finding.value < 1e-4
    assert finding.quantities["negative relevance"].value == 0
    assert finding.grade == "good"


def test_negative_scores_are_said():
    finding = read(subject(sign=-1.0))
    assert finding.status == "measured"
    assert any("scores are negative" in words for words in finding.caveats)
    assert finding.quantities["negative relevance"].value == pytest.approx(1.0, abs=1.0)


def test_batch_norm_and_functional_and_reused_relus():
    finding = read(images())
    assert finding.status == "measured", finding.reason
    assert finding.value < 1e-4
    assert finding.arrays["maps"].shape == (16, 6, 6)
