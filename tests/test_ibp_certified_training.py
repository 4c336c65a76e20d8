"""Interval-bound training: its loss by hand, its schedule, and that answers become certain by it."""

import pytest
import torch
import torch.nn.functional as F
from asking import read
from torch import nn

from microtome.data.digits import digits
from microtome.errors import UsageError
from microtome.folds import Collect
from microtome.learn.ibp_certified_training import IBPLoss, Schedule, certified_train
from microtome.signals import rows
from microtome.signals.bounds import certified_margin
from microtome.subject import Subject


def perceptron(width: int = 32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def test_the_loss_by_hand():
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4)).double()
    x, y, radius = torch.rand(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1]), 0.2
    loss = IBPLoss(model, x, bounds=(0, 1))
    low, high = (x - radius).clamp(0, 1), (x + radius).clamp(0, 1)
    w, b = model[0].weight, model[0].bias
    ends = [
        (low @ w.clamp(min=0).T + high @ w.clamp(max=0).T + b).relu(),
        (high @ w.clamp(min=0).T + low @ w.clamp(max=0).T + b).relu(),
    ]
    w, b = model[2].weight, model[2].bias
    worst = torch.zeros(6, 4, dtype=torch.float64)
    for i in range(6):
        for j in range(4):
            row = w[j] - w[y[i]]
            worst[i, j] = row.clamp(min=0) @ ends[1][i] + row.clamp(max=0) @ ends[0][i] + b[j] - b[y[i]]
    truth = 0.3 * F.cross_entropy(model(x), y) + 0.7 * F.cross_entropy(worst, y)
    found = loss(x, y, radius, 0.3)
    torch.testing.assert_close(found, truth)
    slopes = [torch.autograd.grad(v, list(model.parameters()), retain_graph=True) for v in (found, truth)]
    for a, c in zip(*slopes, strict=True):
        torch.testing.assert_close(a, c)
    torch.testing.assert_close(loss(x, y, radius, 1.0), F.cross_entropy(model(x), y))
    torch.testing.assert_close(loss(x, y, 0.0, 0.0), F.cross_entropy(model(x), y))


def test_the_schedule():
    schedule = Schedule(radius=0.2, kappa=0.5, warm_up=10, ramp=20)
    assert schedule.at(0) == schedule.at(10) == (0.0, 1.0)
    assert schedule.at(20) == pytest.approx((0.1, 0.75))
    assert schedule.at(30) == schedule.at(1000) == pytest.approx((0.2, 0.5))


def certified(model: nn.Module, radius: float) -> float:
    subject = Subject(model, digits("test"), bounds=(0, 1))
    _, bound = read(subject, Collect(signals=(rows, certified_margin(radius, "interval"))))
    return float((bound > 0).double().mean())


def test_answers_become_certain_by_it():
    """The same network, data and steps: with kappa 1 it is ordinary training."""
    data, radius, shares = digits("train", batch_size=64), 0.05, {}
    for kappa in (1.0, 0.25):
        model = perceptron()
        seen = certified_train(
            model, data, Schedule(radius=radius, kappa=kappa, ramp=150), epochs=15, rate=5e-3, bounds=(0, 1)
        )
        assert len(seen) == 15 * 19
        assert not model.training
        x, y = digits("test").x, digits("test").y
        right = float((model(x).argmax(1) == y).double().mean())
        shares[kappa] = certified(model, radius)
        assert shares[kappa] <= right
        assert right > 0.9
    assert shares[0.25] > shares[1.0] + 0.4


def test_networks_with_batch_norm_and_branches():
    from microtome.nn.digits_cnn import DigitsCNN

    torch.manual_seed(0)
    model, data = DigitsCNN(width=4), digits("train", batch_size=64)
    x, y = next(iter(data))
    loss = IBPLoss(model, x[:2], bounds=(0, 1))
    model.train()
    before = model.norm.running_mean.clone()
    value = loss(x, y, 0.01, 0.5)
    value.backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    assert not torch.equal(before, model.norm.running_mean)
    assert model.training


def test_networks_over_tokens_are_refused():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(UsageError, match="MT318"):
        IBPLoss(model, torch.zeros(2, 3, dtype=torch.long))
