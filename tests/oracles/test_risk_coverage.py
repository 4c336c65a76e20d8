"""Risk-coverage curves by counting, one coverage after another."""

import numpy as np
import pytest
import torch
from reliability_subjects import data, network, outputs, read, same
from scipy.special import softmax
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from microtome.folds import row_uniform
from microtome.instruments.reliability.risk_coverage import RiskCoverage
from microtome.statistics import aurc, aurc_resamples, auroc, selective_risks, spearman


def by_hand(score, error):
    """Mean over coverages; predictions of one score share its mean error."""
    level = np.array([error[score == s].mean() for s in score])
    order = sorted(range(len(score)), key=lambda i: -score[i])
    return float(np.mean([level[order[: i + 1]].mean() for i in range(len(order))]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_counting(dtype):
    model, batches = network(dtype), data(dtype)
    finding = read(RiskCoverage(), model, batches)
    z, y = outputs(model, batches)
    error = (z.argmax(1) != y).numpy().astype(float)
    z = z.double().numpy()
    p = softmax(z, axis=1)
    top = np.sort(p, axis=1)
    scores = {
        "max softmax": p.max(1),
        "negative entropy": (p * np.log(p)).sum(1),
        "max logit": z.max(1),
        "softmax margin": top[:, -1] - top[:, -2],
    }
    ideal = by_hand(-error, error)
    for name, *row in finding.tables["scores"].rows[:4]:
        assert row[0] == pytest.approx(by_hand(scores[name], error), rel=1e-6)
        assert row[1] == pytest.approx(row[0] - ideal, abs=1e-9)
        assert row[2] == pytest.approx(roc_auc_score(1 - error, scores[name]), rel=1e-9)
        assert row[3] == pytest.approx(error.mean())
    assert finding.value == pytest.approx(by_hand(scores["max softmax"], error), rel=1e-6)

    # The repair: p chosen on one half of the rows, read on the other.
    centred = z - z.mean(1, keepdims=True)
    held = row_uniform(torch.arange(len(y)), 0).numpy() >= 0.5
    norms = {p: centred.max(1) / np.linalg.norm(centred, p, axis=1) for p in RiskCoverage().powers}
    norms = {p: s.round(12) for p, s in norms.items()}  # for p = 1 many are 1/2 but for rounding
    tried = {p: by_hand(s[~held], error[~held]) for p, s in norms.items()}
    assert [row[1] for row in finding.tables["powers"].rows[1:]] == pytest.approx(
        list(tried.values()), rel=1e-6
    )
    best = min(tried, key=tried.get)
    plain = by_hand(scores["max softmax"][~held], error[~held])
    chosen = norms[best] if tried[best] < plain else scores["max softmax"]
    gain = by_hand(scores["max softmax"][held], error[held]) - by_hand(chosen[held], error[held])
    assert finding.quantities["repair gain"].value == pytest.approx(gain, abs=1e-9)


def test_ties_count_as_the_mean_over_orders():
    rng = np.random.default_rng(0)
    score, error = rng.integers(0, 4, 40).astype(float), (rng.random(40) < 0.4).astype(float)
    shuffled = [by_hand(score + 1e-6 * rng.random(40), error) for _ in range(400)]
    assert float(aurc(score, error)) == pytest.approx(np.mean(shuffled), abs=4 * np.std(shuffled) / 20)
    assert selective_risks(score, error)[-1] == pytest.approx(error.mean())
    both = np.stack([score, -score])
    assert aurc(both, error) == pytest.approx([float(aurc(s, error)) for s in both])


def test_statistics_agree_with_scipy_and_sklearn():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 5, 60), rng.integers(0, 5, 60)
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert auroc(a, b > 2) == pytest.approx(roc_auc_score(b > 2, a))
    assert auroc(a, b > 9) is None
    assert spearman(a, b * 0) is None


def test_interval_is_that_of_a_bootstrap():
    rng = np.random.default_rng(2)
    score, error = rng.random(300), (rng.random(300) < 0.2).astype(float)
    plain = []
    for _ in range(300):
        rows = rng.integers(0, 300, 300)
        plain.append(float(aurc(score[rows], error[rows])))
    spread = aurc_resamples(score[None], error, 1000)[0]
    assert spread.mean() == pytest.approx(np.mean(plain), rel=0.03)
    assert spread.std() == pytest.approx(np.std(plain), rel=0.2)


def test_batch_size_does_not_matter():
    model = network(torch.float64)
    same(*(read(RiskCoverage(), model, data(torch.float64, size)) for size in (7, 64)))


def test_edges():
    (x, y), *_ = data()
    one = read(RiskCoverage(), network(), [(x[:1], y[:1])], task="classification")
    assert one.status == "measured"
    right = read(RiskCoverage(), torch.nn.Identity(), [(5 * torch.eye(4), torch.arange(4))], outputs="logits")
    assert right.value == 0
    assert "no error to detect" in right.caveats
    missed = [(5 * torch.eye(3), (torch.arange(3) + 1) % 3)]
    wrong = read(RiskCoverage(), torch.nn.Identity(), missed, outputs="logits")
    assert wrong.value == 1
    even = [(torch.ones(20, 2), torch.arange(20) % 2)]
    flat = read(RiskCoverage(), torch.nn.Identity(), even, outputs="logits")
    assert flat.value == pytest.approx(0.5)
    assert "classes" in read(RiskCoverage(), torch.nn.Linear(6, 2), [(x, torch.randn(50, 2))]).reason
