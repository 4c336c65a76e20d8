"""Ranks of features, correlations at a lag and surges, against known answers and the instrument of the same name."""

from __future__ import annotations

import pytest
import torch

import microtome as mt
from microtome.errors import UsageError
from microtome.nn.deep_mlp import deep_mlp
from microtome.population import Population
from microtome.population.phases import feature_ranks, lagged_correlation, layer_ranks, smoothed, surges


def test_ranks_of_a_spectrum_that_is_known():
    q, _ = torch.linalg.qr(torch.randn(40, 6, dtype=torch.float64))
    q = torch.linalg.qr(q - q.mean(0))[0]  # centred columns, orthogonal
    equal, uneven = q[:, :4] @ torch.eye(4, 6).double(), q * torch.tensor([2.0, 1, 0, 0, 0, 0]).double()
    effective, numerical = feature_ranks(torch.stack([equal, uneven, torch.ones(40, 6).double()]))
    p = torch.tensor([0.8, 0.2], dtype=torch.float64)
    assert effective.tolist() == pytest.approx([4, float((-(p * p.log()).sum()).exp()), 0])
    assert numerical.tolist() == [4, 2, 0]


def test_ranks_of_layers_are_those_of_the_instrument():
    x = torch.randn(300, 8)
    population = Population.of(lambda: deep_mlp(8, 12, 3, 3), [0, 1])
    effective, _ = layer_ranks(population, x)
    assert effective.shape == (2, 2)
    for i in range(2):
        network = population.member(i)
        for k, stop in enumerate((2, 4)):
            c = torch.cov(network[:stop](x).detach().double().mT)
            values = torch.linalg.eigvalsh(c).clamp(min=0)
            p = values / values.sum()
            assert float(effective[i, k]) == pytest.approx(float(torch.special.entr(p).sum().exp()), rel=1e-4)
    data = [(x, torch.randint(3, (300,)))]
    finding = mt.examine(population.member(0), data, only=["represent/feature_rank"])[
        "represent/feature_rank"
    ]
    told = {row[0]: row[2] for row in finding.tables["layers"].rows}
    assert any(value == pytest.approx(float(effective[0, 1]), rel=1e-3) for value in told.values())


def test_a_shifted_curve_is_found_at_its_shift():
    a = torch.randn(80, 1)
    b = torch.cat([torch.randn(3, 1), -2 * a[:-3]])
    value, lag = lagged_correlation(torch.cat([a, a], 1), torch.cat([b, torch.ones(80, 1)], 1), 5)
    assert value.tolist() == pytest.approx([1, 0], abs=1e-6)
    assert lag[0] == 3
    with pytest.raises(UsageError, match="cannot be shifted"):
        lagged_correlation(a[:4], b[:4], 3)


def test_surges_are_counted_between_plateaus():
    flat = [torch.full((40,), v) for v in (0.1, 0.6, 0.9)]
    ramps = [torch.linspace(0.1, 0.6, 20), torch.linspace(0.6, 0.9, 20)]
    twice = torch.cat([flat[0], ramps[0], flat[1], ramps[1], flat[2]])
    once = torch.cat([flat[0], flat[0][:20], flat[0], ramps[0], flat[1]])
    never = torch.linspace(0.5, 0.52, len(twice))
    assert surges(torch.stack([twice, once, never], 1), 0.1).tolist() == [2, 1, 0]


def test_smoothing_is_a_running_mean():
    curve = torch.tensor([[0.0], [3.0], [6.0], [0.0]])
    assert smoothed(curve, 3)[:, 0].tolist() == [1.5, 3.0, 3.0, 3.0]


def test_a_network_without_hidden_layers_is_refused():
    with pytest.raises(UsageError, match="no hidden layer"):
        deep_mlp(4, 4, 2, 1)
