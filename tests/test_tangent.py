"""Tangent kernels and products against the dense Jacobian by autograd, one answer at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from asking import read
from torch import nn

from microtome.folds import Collect, Sum
from microtome.interpret.kernels import infinite_width_kernels
from microtome.nn.critical import critical_
from microtome.signals import Constant, example_gradient_norms, rows, tangent
from microtome.signals.infinite_width import InfiniteWidthKernel
from microtome.signals.interpretation import interpreted
from microtome.signals.tangent import TangentKernel, TangentProducts, pulled_back, summed_answers
from microtome.subject import Subject


class Tied(nn.Module):
    """A weight used twice, a functional activation, probabilities at the end."""

    def __init__(self, soft: bool = False):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.mix, self.head, self.soft = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(27, 4), soft

    def forward(self, x):
        h = F.relu(self.norm(self.conv(x)))
        h = torch.tanh(self.mix(F.silu(self.mix(h)))).flatten(1)
        return F.softmax(self.head(h), 1) if self.soft else self.head(h)


def subject(soft=False, batch=5):
    torch.manual_seed(0)
    model = Tied(soft).double().eval()
    model.norm.running_var.fill_(0.3)
    x, y = torch.randn(12, 1, 3, 3, dtype=torch.float64), torch.arange(12) % 4
    return Subject(model, [(x[i : i + batch], y[i : i + batch]) for i in range(0, 12, batch)]), model, x


def jacobian(model, x, soft=False):
    """[n, k, p]"""
    out = []
    for row in x:
        answers = model(row[None])[0]
        answers = answers.log() if soft else answers
        slopes = [torch.autograd.grad(a, list(model.parameters()), retain_graph=True) for a in answers]
        out.append(torch.stack([torch.cat([g.flatten() for g in each]) for each in slopes]))
    return torch.stack(out)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("chunk", [1 << 27, 1 << 14])
def test_kernels_are_products_of_jacobians(soft, chunk, monkeypatch):
    monkeypatch.setattr(tangent, "_CHUNK", chunk)
    found, model, x = subject(soft)
    if soft:  # what the network gives as probabilities is asked about as logits
        assert found.task.probabilities
    slopes = jacobian(model, x, soft)
    anchors = Constant(x[3:10])
    ids, one, every = read(
        found,
        Collect(
            signals=(rows, interpreted(TangentKernel(anchors)), interpreted(TangentKernel(anchors, "all")))
        ),
    )
    assert torch.equal(ids, torch.arange(12))
    full = torch.einsum("ikp,jlp->ikjl", slopes, slopes[3:10])
    torch.testing.assert_close(every, full, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(one, full.sum((1, 3)) / 4, rtol=1e-9, atol=1e-12)


def test_products_and_pullbacks_make_the_kernel_without_it():
    found, model, x = subject()
    slopes = jacobian(model, x)
    v = torch.randn(12, 4, dtype=torch.float64)
    back = read(found, Sum(signals=(pulled_back(Constant(v, torch.arange(12))),)))
    torch.testing.assert_close(back, torch.einsum("ikp,ik->p", slopes, v), rtol=1e-9, atol=1e-12)
    product = read(found, Collect(signals=(rows, interpreted(TangentProducts(Constant(back))))))[1]
    theta = torch.einsum("ikp,jlp->ikjl", slopes, slopes)
    torch.testing.assert_close(product, torch.einsum("ikjl,jl->ik", theta, v), rtol=1e-9, atol=1e-12)


def test_the_diagonal_is_the_squared_norm_of_single_gradients():
    found, _, x = subject()
    signals = (rows, example_gradient_norms(summed_answers()), interpreted(TangentKernel(Constant(x))))
    _, norms, kernel = read(found, Collect(signals=signals))
    torch.testing.assert_close(norms.sum(1), kernel.diagonal(), rtol=1e-9, atol=1e-12)


def test_a_wide_network_has_the_kernel_of_infinite_width():
    """In torch's parametrisation, with the network's own variances: errors fall as 1 / sqrt(width)."""
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    errors = []
    for width in (64, 1024):
        gaps = []
        for seed in range(4):
            model = nn.Sequential(
                nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
            )
            critical_(model, "tanh", generator=torch.Generator().manual_seed(seed))
            data = Subject(model, [(x, torch.zeros(8, 1))])
            kernel = read(data, Collect(signals=(rows, interpreted(TangentKernel(Constant(x))))))[1]
            told = infinite_width_kernels(model, x).ntk
            gaps.append(float((kernel - told).norm() / told.norm()))
        errors.append(sum(gaps) / 4)
    assert errors[1] < 0.1
    assert 2 < errors[0] / errors[1] < 8  # the root of 16 is 4


@pytest.mark.parametrize("kind", ["nngp", "ntk"])
def test_kernels_of_infinite_width_are_a_signal_whatever_the_slices(kind):
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 2))
    asked = Collect(signals=(rows, interpreted(InfiniteWidthKernel(Constant(x[2:5]), kind))))
    told = getattr(infinite_width_kernels(model, x), kind)[:, 2:5]
    for size in (9, 4):
        found = read(Subject(model, [(x, torch.arange(9) % 2)]), asked, size=size)[1]
        torch.testing.assert_close(found, told, rtol=1e-10, atol=1e-12)
