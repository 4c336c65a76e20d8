"""Order of learning and boosted stumps: planted orders, and scikit-learn's AdaBoost."""

from __future__ import annotations

import pytest
import torch

from microtome.data.digits import tensors
from microtome.errors import UsageError
from microtome.learn.boosting import adaboost
from microtome.population.accessibility import accessibility, concordance, shared_order

DRAW = torch.Generator().manual_seed(4)


def planted(shared: bool, members: int = 12, examples: int = 200, moments: int = 30):
    """Each example is learnt at a moment of its own: the same for all members, or each member's own."""
    learnt = torch.rand(1 if shared else members, examples, generator=DRAW) * moments
    return torch.arange(moments)[:, None, None] > learnt.expand(members, examples), learnt


def test_a_shared_order_is_found():
    correct, learnt = planted(shared=True)
    assert shared_order(correct) == pytest.approx(1)
    order = accessibility(correct)
    assert (order[learnt[0].argsort()].diff() <= 0).all()
    inner = (correct.double().mean((1, 2)) > 0) & (correct.double().mean((1, 2)) < 1)
    together = concordance(correct)[inner]
    assert torch.allclose(together, torch.ones_like(together), atol=0.02)


def test_private_orders_are_told_apart():
    correct, _ = planted(shared=False)
    assert abs(shared_order(correct)) < 0.15
    assert concordance(correct)[3:].abs().max() < 0.1


def test_concordance_is_the_mean_correlation_of_two_networks():
    skill = torch.rand(400, generator=DRAW)
    table = torch.rand(30, 400, generator=DRAW) < skill
    pairs = torch.corrcoef(table.double())
    expected = (pairs.sum() - 30) / (30 * 29)
    assert float(concordance(table[None])[0]) == pytest.approx(float(expected), abs=0.01)


def test_nothing_learnt_is_no_order():
    correct = torch.zeros(3, 4, 10, dtype=torch.bool)
    assert shared_order(correct) == 0 and not concordance(correct).any()


def test_stumps_are_scikit_learns():
    ensemble = pytest.importorskip("sklearn.ensemble")
    tree = pytest.importorskip("sklearn.tree")
    (x, y), (test, truth) = tensors("train", flat=True), tensors("test", flat=True)
    ours = adaboost(x, y, 10, rounds=40)
    theirs = ensemble.AdaBoostClassifier(
        tree.DecisionTreeClassifier(max_depth=1, criterion="entropy"), n_estimators=40
    )
    theirs.fit(x.numpy(), y.numpy())
    accuracy = [
        float((ours.staged(test) == truth).double().mean(1)[-1]),
        theirs.score(test.numpy(), truth.numpy()),
    ]
    assert accuracy[0] > accuracy[1] - 0.1
    # The first stump by its definition: no other split of no other pixel gets more of the training digits right.
    best = max(
        sum(
            float((y[side] == y[side].mode().values).sum())
            for side in (x[:, f] > t, x[:, f] <= t)
            if side.any()
        )
        for f in range(64)
        for t in x[:, f].unique()[:-1]
    )
    assert float((ours.staged(x)[0] == y).sum()) == best


def test_boosting_ends_without_an_edge_and_repeats_by_seed():
    x, y = torch.zeros(40, 3), torch.arange(40) % 4
    x[:, 0] = (y > 1).float()
    one, two = (adaboost(x, y, 4, rounds=9, features=1, seed=s) for s in (5, 5))
    assert torch.equal(one.staged(x), two.staged(x))
    assert 0 < len(one.weight) < 9  # two of three features are constant
    with pytest.raises(UsageError, match="MT493"):
        adaboost(torch.zeros(8, 2), y[:8], 4)
