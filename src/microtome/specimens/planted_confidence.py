"""Networks whose confidences are wrong, or right, in a way that was chosen."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from microtome.finding import Finding
from microtome.folds import row_uniform
from microtome.specimen import Specimen, Truth, specimen
from microtome.subject import Subject


class _Echo(nn.Module):
    """The inputs are the logits."""

    def forward(self, x: Tensor) -> Tensor:
        """[n, k] -> [n, k]."""
        return x * 1.0


def _subject(logits: Tensor, labels: Tensor, name: str) -> Subject:
    parts = zip(logits.split(64), labels.split(64), strict=True)
    return Subject(_Echo(), list(parts), name=name, outputs="logits")


@specimen
def overconfident() -> Specimen:
    """1000 answers given with probability 0.8, of which 600 are right; errors spread over four classes."""
    m, k = 1000, 5
    answered = torch.arange(m) % k
    labels = torch.where(torch.arange(m) % 10 < 6, answered, (answered + 1 + torch.arange(m) // 10 % 4) % k)
    logits = torch.full((m, k), 0.05, dtype=torch.float64).scatter_(1, answered[:, None], 0.8).log()
    name, why = "reliability/calibration", "600 of 1000 answers given with probability 0.8 are right"
    brier = 0.6 * (0.2**2 + 4 * 0.05**2) + 0.4 * (0.8**2 + 0.95**2 + 3 * 0.05**2)
    # Mean absolute deviation of a binomial share, normal limit; 1000 draws of it.
    spread = math.sqrt(0.16 / m)
    floor = spread * math.sqrt(2 / math.pi)
    noise = 4 * spread * math.sqrt((1 - 2 / math.pi) / 1000) + 0.02 * floor
    return Specimen(
        "overconfident",
        _subject(logits, labels, "overconfident"),
        (
            Truth(name, "ECE", 0.2, 1e-9, why),
            Truth(name, "equal-mass ECE", 0.2, 1e-9, why),
            Truth(name, "overconfidence", 0.2, 1e-9, why),
            Truth(name, "Brier score", brier, 1e-9, why),
            Truth(name, "temperature", math.log(16) / math.log(6), 1e-6, "it makes the probability 0.6"),
            Truth(name, "ECE if perfectly calibrated", floor, noise, "deviation of a binomial share of 1000"),
        ),
    )


def _areas(wrong: int, total: int) -> tuple[float, float]:
    """AURC when the errors come last, and when they come first."""
    last = sum(j / (total - wrong + j) for j in range(1, wrong + 1)) / total
    first = (wrong + sum(wrong / i for i in range(wrong + 1, total + 1))) / total
    return last, first


@specimen
def ordered_doubts() -> Specimen:
    """80 right answers, each more certain than each of 20 wrong ones."""
    m, wrong = 100, 20
    at = torch.arange(m)
    answered = at % 3
    labels = torch.where(at < m - wrong, answered, (answered + 1) % 3)
    logits = nn.functional.one_hot(answered, 3) * (5.0 - 0.04 * at)[:, None]
    name, why = "reliability/risk_coverage", "the errors are the 20 least certain"
    area = _areas(wrong, m)[0]
    return Specimen(
        "ordered doubts",
        _subject(logits, labels, "ordered doubts"),
        (
            Truth(name, "AURC", area, 1e-12, why),
            Truth(name, "excess AURC", 0.0, 1e-12, why),
            Truth(name, "AUROC of errors", 1.0, 1e-12, why),
        ),
    )


@specimen
def shouted_errors() -> Specimen:
    """Wrong answers have larger logits, but a rival close behind: only the direction of the logits tells."""
    m = 200
    at = torch.arange(m)
    bad = at % 5 == 0
    right = torch.tensor([1.0, 0.0, 0.0, 0.0]) * (2.0 + 0.001 * at)[:, None]
    wrong = torch.tensor([1.0, 0.5, 0.0, 0.0]) * (20.0 + 0.01 * at)[:, None]
    logits = torch.where(bad[:, None], wrong, right)
    labels = bad.long()
    held = row_uniform(at, 0) >= 0.5
    last, first = _areas(int(bad[held].sum()), int(held.sum()))
    why = "by max softmax the errors come first, by direction last"
    truth = Truth("reliability/risk_coverage", "repair gain", first - last, 1e-9, why)
    return Specimen("shouted errors", _subject(logits, labels, "shouted errors"), (truth,))


@specimen
def planted_centroids() -> Specimen:
    """Every class answers with one softmax vector, so centroids and their distances are known."""
    vectors = torch.tensor([[0.8, 0.15, 0.05], [0.3, 0.6, 0.1], [0.02, 0.08, 0.9]], dtype=torch.float64)
    labels = torch.arange(90) % 3
    near, far = (float((vectors[0] - vectors[j]).norm()) for j in (1, 2))

    def drift(finding: Finding) -> float:
        return float(finding.arrays["likelihood"][0, 1])

    name, why = "reliability/misclassification_likelihood_matrix", "the centroids are the planted vectors"
    return Specimen(
        "planted centroids",
        _subject(vectors[labels].log(), labels, "planted centroids"),
        (
            Truth(name, "likelihood that 0 drifts into 1", far / (near + far), 1e-9, why, read=drift),
            Truth(name, "abstention gain", 0.0, 1e-12, "there is no error"),
        ),
    )


@specimen
def stray_answers() -> Specimen:
    """Right answers lie on their centroid with probability 0.6, wrong ones away from it with 0.9."""
    m = 200
    at = torch.arange(m)
    bad = at % 4 == 0
    right, wrong = torch.tensor([0.6, 0.2, 0.2]).double(), torch.tensor([0.9, 0.05, 0.05]).double()
    logits = torch.where(bad[:, None], wrong, right).log()
    held = row_uniform(at, 0) >= 0.5
    total, errors = int(held.sum()), int(bad[held].sum())
    last, first = _areas(errors, total)  # ties are all right or all wrong
    name, why = (
        "reliability/misclassification_likelihood_matrix",
        "distance puts the errors last, softmax first",
    )
    return Specimen(
        "stray answers",
        _subject(logits, bad.long(), "stray answers"),
        (
            Truth(name, "abstention gain", first - last, 1e-9, why),
            Truth(name, "error rate of the kept", 0.0, 1e-12, "every error lies beyond the threshold"),
        ),
    )
