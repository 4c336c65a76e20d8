"""The matrix of distances to centroids, cell by cell."""

import numpy as np
import pytest
import torch
from reliability_subjects import CLASSES, data, network, outputs, read, same
from scipy.stats import spearmanr

from microtome.folds import row_uniform
from microtome.instruments.reliability import misclassification_likelihood_matrix

Matrix = misclassification_likelihood_matrix.MisclassificationLikelihoodMatrix


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_cell_by_cell(dtype):
    model, batches = network(dtype, 0.3), data(dtype)
    finding = read(Matrix(), model, batches)
    z, y = outputs(model, batches)
    p, given, y = z.double().softmax(1).numpy(), z.argmax(1).numpy(), y.numpy()
    first = row_uniform(torch.arange(len(y)), 0).numpy() < 0.5
    centroids = [p[first & (y == c) & (given == c)].mean(0) for c in range(CLASSES)]
    assert finding.arrays["centroids"] == pytest.approx(np.array(centroids), rel=1e-6)
    distance = np.zeros((CLASSES, CLASSES))
    for i in range(CLASSES):
        for j in range(CLASSES):
            distance[i, j] = np.mean([np.linalg.norm(row - centroids[j]) for row in p[first & (y == i)]])
    assert finding.arrays["distances"] == pytest.approx(distance, rel=1e-6)
    likelihood = 1 / distance
    np.fill_diagonal(likelihood, 0)
    likelihood /= likelihood.sum(1, keepdims=True)
    assert finding.arrays["likelihood"] == pytest.approx(likelihood, rel=1e-6)
    shares = np.array(
        [[np.mean(given[~first & (y == i)] == j) for j in range(CLASSES)] for i in range(CLASSES)]
    )
    off = ~np.eye(CLASSES, dtype=bool)
    agreement = finding.quantities["agreement"]
    assert agreement.value == pytest.approx(spearmanr(likelihood[off], shares[off]).statistic)
    assert agreement.low < agreement.value < agreement.high


@pytest.mark.parametrize("seed", [0, 1])
def test_abstention_by_counting(seed):
    model, batches = network(torch.float64), data(torch.float64)
    finding = read(Matrix(seed=seed), model, batches)
    z, y = outputs(model, batches)
    p, given = z.softmax(1).numpy(), z.argmax(1)
    wrong = (given != y).numpy()
    first = row_uniform(torch.arange(len(y)), seed).numpy() < 0.5
    own = np.linalg.norm(p - finding.arrays["centroids"][given], axis=1)

    def area(score):
        order = np.argsort(-score)
        return np.mean([wrong[~first][order[: i + 1]].mean() for i in range(len(order))])

    assert finding.quantities["AURC by distance"].value == pytest.approx(area(-own[~first]), rel=1e-9)
    assert finding.quantities["AURC by max softmax"].value == pytest.approx(area(p.max(1)[~first]), rel=1e-9)
    limits = [own[first & wrong & (given.numpy() == c)].min(initial=np.inf) for c in range(CLASSES)]
    kept = (own < np.array(limits)[given])[~first]
    assert finding.quantities["kept by thresholds"].value == pytest.approx(kept.mean())
    left = wrong[~first][kept].mean() if kept.any() else 0.0
    assert finding.quantities["error rate of the kept"].value == pytest.approx(left)


def test_batch_size_does_not_matter():
    model = network(torch.float64)
    same(*(read(Matrix(), model, data(torch.float64, size)) for size in (7, 64)))


def test_edges():
    few = read(Matrix(), network(), [(torch.randn(1, 6), torch.tensor([0]))])
    assert "too few" in few.reason
    logits, labels = 5 * torch.eye(4)[torch.arange(40) % 2], torch.arange(40) % 2
    unseen = read(Matrix(), torch.nn.Identity(), [(logits, labels)], outputs="logits")
    assert any("2 classes have no right answer" in caveat for caveat in unseen.caveats)
    assert "agreement" not in unseen.quantities
    values = read(Matrix(), torch.nn.Linear(6, 2), [(torch.randn(9, 6), torch.randn(9, 2))])
    assert "classes" in values.reason
