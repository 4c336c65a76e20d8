"""Calibration errors from the formula, one prediction after another, and by torchmetrics."""

import numpy as np
import pytest
import torch
from reliability_subjects import CLASSES, data, network, outputs, read, same
from scipy.optimize import minimize_scalar
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from microtome.instruments.reliability.calibration import Calibration

DTYPES = [torch.float32, torch.float64]


def by_hand(p, y, bins):
    """Sum over bins of |sum of (confidence - right)| / m."""
    gaps = [0.0] * bins
    for row, label in zip(p, y, strict=True):
        top = float(row.max())
        gaps[min(int(top * bins), bins - 1)] += float(row.argmax() == label) - top
    return sum(abs(g) for g in gaps) / len(p)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bins", [5, 15])
def test_agrees_with_the_formulas(dtype, bins):
    model, batches = network(dtype), data(dtype)
    finding = read(Calibration(bins=bins), model, batches)
    z, y = outputs(model, batches)
    p = z.softmax(1)
    assert finding.value == pytest.approx(by_hand(p, y, bins), abs=1e-6)
    peer = multiclass_calibration_error(p, y, CLASSES, n_bins=bins, norm="l1")
    assert finding.value == pytest.approx(float(peer), abs=1e-6)
    values = {name: q.value for name, q in finding.quantities.items()}
    p = p.double()
    hot = torch.nn.functional.one_hot(y, CLASSES)
    assert values["Brier score"] == pytest.approx(float((p - hot).square().sum(1).mean()), rel=1e-5)
    nll = log_loss(y, z.double().softmax(1).numpy(), labels=range(CLASSES))
    assert values["negative log-likelihood"] == pytest.approx(nll, rel=1e-5)
    surplus = float(p.amax(1).mean() - (p.argmax(1) == y).double().mean())
    assert values["overconfidence"] == pytest.approx(surplus, abs=1e-6)
    each = []
    for c in range(CLASSES):
        gaps = [0.0] * bins
        for value, hit in zip(p[:, c].tolist(), (y == c).tolist(), strict=True):
            gaps[min(int(value * bins), bins - 1)] += hit - value
        each.append(sum(map(abs, gaps)) / len(p))
    assert values["classwise ECE"] == pytest.approx(np.mean(each), abs=1e-6)


def test_two_classes_agree_with_sklearn_on_brier():
    torch.manual_seed(3)
    model = torch.nn.Linear(5, 1)
    batches = [(torch.randn(80, 5), torch.randint(0, 2, (80,)))]
    finding = read(Calibration(), model, batches)
    with torch.no_grad():
        p = model(batches[0][0]).sigmoid()[:, 0].double()
    # Over both classes the score is twice that of one.
    expected = 2 * brier_score_loss(batches[0][1].numpy(), p.numpy())
    assert finding.quantities["Brier score"].value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scale", [0.2, 1.0, 5.0])
def test_temperature_is_where_the_likelihood_is_best(scale):
    model, batches = network(torch.float64, scale), data(torch.float64)
    finding = read(Calibration(), model, batches)
    z, y = outputs(model, batches)
    nll = lambda t: float(torch.nn.functional.cross_entropy(z / np.exp(t), y))  # noqa: E731
    best = minimize_scalar(nll, bounds=(-4.6, 4.6), method="bounded", options={"xatol": 1e-10})
    quantity = finding.quantities["temperature"]
    assert quantity.value == pytest.approx(np.exp(best.x), rel=1e-5)
    assert quantity.low < quantity.value < quantity.high


def test_equal_mass_bins_hold_equal_numbers():
    model, batches = network(torch.float64), data(torch.float64)
    finding = read(Calibration(bins=10), model, batches)
    z, y = outputs(model, batches)
    p = z.softmax(1)
    gap = ((p.argmax(1) == y).double() - p.amax(1))[p.amax(1).argsort()]
    expected = sum(abs(float(part.sum())) for part in gap.split(20)) / 200
    assert finding.quantities["equal-mass ECE"].value == pytest.approx(expected, abs=1e-9)


def test_mended_with_the_temperature_of_the_other_half():
    """A network made too sure by a factor is mended by dividing by it, whichever half says so."""
    torch.manual_seed(5)
    z = 2 * torch.randn(4000, 3, dtype=torch.float64)
    y = torch.multinomial(z.softmax(1), 1)[:, 0]
    finding = read(Calibration(), torch.nn.Identity(), [(4 * z, y)], outputs="logits")
    assert finding.quantities["temperature"].low < 4 < finding.quantities["temperature"].high
    assert finding.value > 0.1
    assert finding.quantities["ECE after temperature"].value < 0.03


def test_interval_covers_the_truth_of_a_calibrated_network():
    torch.manual_seed(6)
    missed = 0
    for _ in range(20):
        z = 2 * torch.randn(300, 3, dtype=torch.float64)
        y = torch.multinomial(z.softmax(1), 1)[:, 0]
        finding = read(Calibration(), torch.nn.Identity(), [(z, y)], outputs="logits")
        low, _ = finding.interval
        missed += low > 0
    assert missed <= 4  # of 20 at 95 %: five would be a chance of 1 in 400


def test_batch_size_does_not_matter():
    model = network(torch.float64)
    same(*(read(Calibration(), model, data(torch.float64, size)) for size in (7, 64)))


def test_edges():
    model = network()
    (x, y), *_ = data()
    assert read(Calibration(), model, [(x[:1], y[:1])], task="classification").status == "measured"
    sure = read(Calibration(), torch.nn.Identity(), [(1e4 * torch.eye(4), torch.arange(4))], outputs="logits")
    assert sure.value == 0
    assert any("no temperature" in caveat for caveat in sure.caveats)
    assert "classes" in read(Calibration(), torch.nn.Linear(6, 2), [(x, torch.randn(50, 2))]).reason
    masked = torch.tensor([[1.0, -9e9, 0.0], [0.0, 2.0, -9e9]] * 3)
    found = read(Calibration(), torch.nn.Identity(), [(masked, torch.tensor([0, 1] * 3))], outputs="logits")
    assert found.status == "measured"


def test_certainty_belongs_to_the_last_bin():
    """torchmetrics keeps a bin for confidences of exactly 1; by definition the last bin is closed."""
    z = torch.tensor([[200.0, 0.0]] * 4 + [[3.0, 0.0]] * 4)
    y = torch.tensor([0, 0, 0, 1, 0, 0, 0, 0])
    finding = read(Calibration(), torch.nn.Identity(), [(z, y)], outputs="logits")
    assert finding.value == pytest.approx(by_hand(z.softmax(1), y, 15), abs=1e-7)
    apart = float(multiclass_calibration_error(z.softmax(1), y, 2, n_bins=15))
    assert apart > finding.value + 0.01
