"""The spectrum, the alignment and the error, against the dense tangent kernel of every pair of answers."""

import math

import pytest
import torch
from torch import nn

from microtome.instruments.theory.pntk import PseudoNTK
from microtome.passes.run import run_instruments
from microtome.subject import Subject


def networks():
    torch.manual_seed(2)
    dense = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)).double()
    conv = nn.Sequential(
        nn.Conv2d(1, 4, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    ).double()
    return [
        (dense, torch.randn(10, 6, dtype=torch.float64)),
        (conv, torch.randn(10, 1, 5, 5, dtype=torch.float64)),
    ]


@pytest.mark.parametrize("which", [0, 1])
def test_it_is_what_the_full_kernel_says(which):
    model, x = networks()[which]
    y, n, k = torch.arange(10) % 3, 10, 3
    finding = run_instruments(Subject(model, [(x[:4], y[:4]), (x[4:], y[4:])]), {"i": PseudoNTK(exact=10)})[
        "i"
    ]
    slopes = [[torch.cat([g.flatten() for g in torch.autograd.grad(model(row[None])[0, a], model.parameters())])
               for a in range(k)] for row in x]  # fmt: skip
    theta = torch.tensor(
        [[[[float(p @ q) for q in other] for other in slopes] for p in mine] for mine in slopes]
    )
    summed = [sum(each) / math.sqrt(k) for each in slopes]
    kernel = torch.tensor([[float(a @ b) for b in summed] for a in summed], dtype=torch.float64)
    theta = theta.double()
    values = torch.linalg.eigvalsh(kernel)
    p = values[values > 0] / values.sum()
    read = {name: q.value for name, q in finding.quantities.items()}
    assert read["largest eigenvalue"] == pytest.approx(float(values[-1]))
    assert read["effective rank"] == pytest.approx(float(torch.exp(-(p * p.log()).sum())))
    assert read["mean of the diagonal"] == pytest.approx(float(kernel.trace()) / n)
    stand_in = torch.zeros(n, k, n, k, dtype=torch.float64)
    for a in range(k):
        stand_in[:, a, :, a] = kernel
    assert read["error of the stand-in"] == pytest.approx(
        float((stand_in - theta).norm() / theta.norm()), rel=1e-6
    )
    same = torch.tensor([[float(a == b) for b in y] for a in y], dtype=torch.float64)

    def centred(m):
        return m - m.mean(0, keepdim=True) - m.mean(1, keepdim=True) + m.mean()

    a, b = centred(kernel), centred(same)
    assert read["alignment with the labels"] == pytest.approx(float((a * b).sum() / a.norm() / b.norm()))


def test_what_has_no_parameters_in_the_way_or_takes_tokens_is_refused():
    x, y = torch.randint(0, 5, (8, 4)), torch.arange(8) % 2
    model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(12, 2))
    finding = run_instruments(Subject(model, [(x, y)]), {"i": PseudoNTK()})["i"]
    assert finding.status == "refused"
    assert "real-valued input" in finding.reason
