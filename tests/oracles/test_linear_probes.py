"""Probes against scikit-learn's ridge on the same halves."""

import numpy as np
import pytest
import torch
from represent_subjects import activations, batches, close, data, network, read, subject

from microtome.instruments.represent.linear_probes import LinearProbes
from microtome.signals.noise import row_uniform
from microtome.subject import Subject


def halves(n, seed=0):
    fit = (row_uniform(torch.arange(n), seed, 21) < 0.5).numpy()
    return fit, ~fit


def ridge(h, y, fit, strength):
    from sklearn.linear_model import Ridge

    mean, sd = h[fit].mean(0), h[fit].std(0, ddof=1)
    z = (h - mean) / np.where(sd > 0, sd, 1)
    # n - 1 times the instrument's objective.
    return Ridge(alpha=strength * (fit.sum() - 1)).fit(z[fit], y[fit]).predict(z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_classification_against_sklearn(dtype):
    finding, (_, y) = read(subject(dtype), LinearProbes(ridge=0.05)), data(dtype)
    rows = {row[0]: row for row in finding.tables["layers"].rows}
    fit, held = halves(len(y))
    for name, value in activations(dtype).items():
        h = (value.mean((2, 3)) if value.dim() == 4 else value).double().numpy()
        given = ridge(h, np.eye(4)[y.numpy()], fit, 0.05).argmax(1)
        assert rows[name][2] == pytest.approx((given == y.numpy())[held].mean(), abs=1e-9), name


def test_regression_against_sklearn():
    from sklearn.metrics import r2_score

    x, _ = data()
    y = torch.stack([x.mean((1, 2, 3)), x.square().mean((1, 2, 3)), x[:, 0, 0, 0], x[:, 0, 3, 3]], dim=1)
    finding = read(Subject(network(), batches(x, y), task="regression"), LinearProbes())
    fit, held = halves(101)
    for name, _, score, *_ in finding.tables["layers"].rows:
        value = activations()[name]
        h = (value.mean((2, 3)) if value.dim() == 4 else value).numpy()
        assert score == pytest.approx(
            r2_score(y.numpy()[held], ridge(h, y.numpy(), fit, 0.03)[held]), abs=1e-8
        )


def test_slices_do_not_matter():
    close(read(subject(), LinearProbes()), read(subject(size=7), LinearProbes(), 7))


def test_one_class_one_example_and_dead_layers():
    x, y = data()
    assert read(Subject(network(), batches(x, 0 * y)), LinearProbes()).value == 1
    assert read(Subject(network(), batches(x[:1], y[:1])), LinearProbes()).status == "refused"
    net = network()
    with torch.no_grad():
        net.fc.weight.zero_()
    finding = read(Subject(net, batches(x, y)), LinearProbes())
    assert finding.value <= finding.quantities["majority share"].value + 0.2
