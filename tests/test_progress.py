"""Losses by rotation alone, on logits whose make-up is known."""

from __future__ import annotations

import math

import pytest
import torch

from microtome.data.modular import modular_pairs, modular_table
from microtome.population.fourier import gini, sum_waves
from microtome.population.progress import curves, key_frequencies, progress

P = 11


def rotation(frequencies):
    apart = (modular_pairs(P).sum(1)[:, None] - torch.arange(P)).double()
    return sum(8 * (2 * math.pi * k * apart / P).cos() for k in frequencies)


def test_waves_are_orthonormal():
    waves = sum_waves(P, torch.tensor([1, 3, 5]))
    assert torch.allclose(waves.T @ waves, torch.eye(6, dtype=torch.float64), atol=1e-12)


def test_a_rotation_is_all_that_its_frequencies_explain():
    which, share = key_frequencies(rotation([2, 4])[None], 2)
    assert sorted(which[0].tolist()) == [2, 4] and float(share[0]) == pytest.approx(1)
    torch.manual_seed(0)
    _, share = key_frequencies(torch.randn(1, P * P, P), 2)
    assert float(share[0]) < 0.1


def test_restricted_keeps_the_rotation_and_excluded_what_was_memorised():
    """Logits of a rotation at 2, and of the answers by heart where they were learnt."""
    answers, trained = modular_table(P), torch.arange(P * P) % 2 == 0
    heart = 20.0 * trained[:, None] * (answers[:, None] == torch.arange(P))
    keys = torch.tensor([2])
    both = progress(rotation([2]) + heart, answers, trained, keys)
    assert both.train < 1e-3 and both.excluded < 1e-2  # known by heart without the rotation
    alone = progress(rotation([2]), answers, trained, keys)
    assert alone.restricted == pytest.approx(alone.test)
    assert alone.excluded == pytest.approx(math.log(P))  # nothing is left
    table = curves(torch.stack([rotation([2])] * 3)[:, None], answers[None], trained[None], keys[None])
    assert table.shape == (3, 1, 4) and float(table[2, 0, 2]) == pytest.approx(alone.restricted)


def test_inequality():
    assert float(gini(torch.ones(4))) == pytest.approx(0)
    assert float(gini(torch.tensor([0.0, 0.0, 0.0, 5.0]))) == pytest.approx(0.75)
