"""Compression of populations, and who is hit by it: planted answers, torch's pruning, scipy's tests."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn.utils import prune

from microtome.data.digits import tensors
from microtome.data.long_tail import long_tail
from microtome.errors import UsageError
from microtome.population import Population
from microtome.population.compressed import magnitude_masks, quantised
from microtome.population.exemplars import class_changes, exemplars, modal, odds_ratio

DRAW = torch.Generator().manual_seed(8)


def build():
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4))


def test_pruning_is_torchs_global_pruning_of_each_member():
    population = Population.of(build, range(3))
    whole = population.copy()
    population.mask(magnitude_masks(population, 0.7))
    for i in range(3):
        alone = whole.member(i)
        prune.global_unstructured(
            [(alone[0], "weight"), (alone[2], "weight")], prune.L1Unstructured, amount=0.7
        )
        assert torch.equal(alone[0].weight, population.parameters["0.weight"][i])
        assert torch.equal(alone[2].weight, population.parameters["2.weight"][i])
    assert torch.equal(population.parameters["0.bias"], whole.parameters["0.bias"])
    with pytest.raises(UsageError, match="MT498"):
        magnitude_masks(population, 1.0)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_has_so_many_levels_and_so_much_error(bits):
    population = Population.of(build, range(2))
    rounded = quantised(population, bits)
    for i in range(2):
        weight, exact = rounded.parameters["0.weight"][i], population.parameters["0.weight"][i]
        step = float(exact.abs().max()) / (2 ** (bits - 1) - 1)
        assert len(weight.unique()) <= 2**bits - 1
        assert float((weight - exact).abs().max()) <= step / 2 + 1e-6
        assert torch.equal(rounded.parameters["2.bias"][i], population.parameters["2.bias"][i])
    with pytest.raises(UsageError, match="MT498"):
        quantised(population, 1)


def test_exemplars_are_where_the_majority_changes():
    dense = torch.tensor([[0, 1, 2, 2], [0, 1, 2, 1], [0, 0, 1, 2]])
    pruned = torch.tensor([[0, 2, 2, 0], [1, 2, 2, 0], [0, 1, 2, 2]])
    assert modal(dense, 3).tolist() == [0, 1, 2, 2]
    assert exemplars(dense, pruned, 3).tolist() == [False, True, False, True]


def test_odds_ratio_by_hand():
    flagged = torch.tensor([True] * 30 + [False] * 170)
    special = torch.tensor([True] * 20 + [False] * 10 + [True] * 20 + [False] * 150)
    value, low, high = odds_ratio(flagged, special)
    assert value == pytest.approx(20.5 * 150.5 / (10.5 * 20.5))
    table = stats.contingency.odds_ratio([[20, 10], [20, 150]], kind="sample")
    expected = table.confidence_interval(0.95)
    assert np.log([low, high]) == pytest.approx(np.log([expected.low, expected.high]), abs=0.15)
    assert odds_ratio(torch.zeros(9), torch.zeros(9))[0] == pytest.approx(0.5 * 9.5 / (0.5 * 0.5))


def test_a_class_that_loses_more_than_the_others_is_found():
    truth = torch.arange(400) % 4
    chance = torch.full((4,), 0.8)
    one, two = (
        torch.where(torch.rand(15, 400, generator=DRAW) < c[truth], truth, (truth + 1) % 4)
        for c in (chance, chance - torch.tensor([0.1, 0.1, 0.1, 0.4]))
    )
    found = class_changes(one, two, truth, 4)
    assert found[3].p_holm < 1e-6 and found[3].change == pytest.approx(-0.4 + 0.175, abs=0.04)
    relative = [
        (a == truth).double()[:, truth == 1].mean(1) - (a == truth).double().mean(1) for a in (one, two)
    ]
    assert found[1].p == pytest.approx(stats.ttest_ind(relative[1], relative[0], equal_var=False).pvalue)
    same = class_changes(one, one, truth, 4)
    assert all(c.change == 0 and c.p == pytest.approx(1) for c in same)


def test_what_is_planted_is_there_and_nothing_else():
    x, y = tensors("train")
    planted = long_tail(x, y, 10, rare=3, kept=0.05, wrong=0.03, atypical=0.06, seed=2)
    m = len(planted.y)
    assert int(planted.rare.sum()) == round(0.05 * int((y == 3).sum()))
    assert torch.equal(planted.y != planted.truth, planted.wrong) and int(planted.wrong.sum()) == round(
        0.03 * m
    )
    left = (y != 3).nonzero()[:, 0]
    common = ~planted.rare
    changed = (planted.x[common] != x[left]).flatten(1).any(1)
    assert torch.equal(changed, planted.atypical[common])
    assert not (planted.wrong & planted.atypical).any()
    with pytest.raises(UsageError, match="MT499"):
        long_tail(x, y, 10, rare=11)
