"""Codes against loops over examples and scikit-learn's neighbours."""

import numpy as np
import pytest
import torch
from represent_subjects import activations, batches, close, data, network, read, subject
from torch import nn

from microtome.instruments.represent.neural_codes_hash_encoders import NeuralCodes
from microtome.subject import Subject


def test_against_sets_and_sorted_distances():
    finding, (_, y) = read(subject(), NeuralCodes(neighbours=5)), data()
    code = (activations()["relu"].flatten(1) > 0).numpy()
    seen: set[bytes] = set()
    repeated = sum(1 for c in code if c.tobytes() in seen or seen.add(c.tobytes()))
    assert finding.quantities["redundancy"].value == pytest.approx(repeated / len(code))
    share = []
    for i in range(len(code)):
        distance = (code != code[i]).sum(1)
        order = sorted((d, j) for j, d in enumerate(distance) if j != i)[:5]
        share.append(np.mean([y[j] == y[i] for _, j in order]))
    assert finding.quantities["purity"].value == pytest.approx(np.mean(share))


def test_nearest_code_against_sklearn():
    from sklearn.neighbors import KNeighborsClassifier

    finding, (_, y) = read(subject(), NeuralCodes(neighbours=1)), data()
    code = (activations()["relu"].flatten(1) > 0).numpy()
    y = y.numpy()
    right = []
    for i in range(len(y)):
        model = KNeighborsClassifier(1, metric="hamming", algorithm="brute")
        right.append(model.fit(np.delete(code, i, 0), np.delete(y, i)).predict(code[[i]])[0] == y[i])
    assert finding.quantities["nearest-code accuracy"].value == pytest.approx(
        np.mean(right), abs=0.03
    )  # ties


def test_slices_do_not_matter():
    options = {"count": 50, "bits": 40}
    close(read(subject(), NeuralCodes(**options)), read(subject(size=7), NeuralCodes(**options), 7))


def test_edges():
    x, y = data()
    assert read(Subject(network(), batches(x[:1], y[:1])), NeuralCodes()).status == "refused"
    assert read(Subject(network(), batches(x[:2], y[:2])), NeuralCodes()).status == "measured"
    plain = nn.Sequential(nn.Flatten(), nn.Linear(36, 4)).double()
    assert "ReLU-like" in read(Subject(plain, batches(x, y)), NeuralCodes()).reason
    values = read(Subject(network(), batches(x, torch.randn(101, 4).double())), NeuralCodes())
    assert "nearest-code accuracy" not in values.quantities
