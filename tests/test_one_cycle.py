"""The cycle is torch's own; the range test finds the edge of a quadratic; the estimate is its inverse curvature."""

import math

import pytest
import torch
from torch import nn

from microtome.errors import UsageError
from microtome.learn import one_cycle as o
from microtome.population import Population, Recipe, every, train


@pytest.mark.parametrize("total", [20, 57, 200])
def test_the_cycle_is_that_of_torch(total):
    cycle = o.OneCycle(total=total)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        1.0,
        total_steps=total,
        pct_start=0.45,
        div_factor=10,
        final_div_factor=100,
        anneal_strategy="linear",
        three_phase=True,
        max_momentum=0.95,
        base_momentum=0.85,
    )
    for step in range(total):
        group = optimizer.param_groups[0]
        assert cycle(step) == pytest.approx(group["lr"], abs=1e-6)
        assert cycle.momentum_at(step) == pytest.approx(group["momentum"], abs=1e-6)
        optimizer.step()
        if step < total - 1:
            theirs.step()


def test_step_decay_and_cosine():
    down, wave = o.step_decay(100), o.cosine(100)
    assert [round(down(s), 6) for s in (0, 49, 50, 74, 75, 99)] == [1, 1, 0.1, 0.1, 0.01, 0.01]
    assert wave(0) == 1 and wave(50) == pytest.approx(0.5) and wave(100) == pytest.approx(0)
    each = o.by_member([down, wave, down])
    assert each(50).tolist() == pytest.approx([0.1, 0.5, 0.1])


class Bowl(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.w


def half_square(out, target):
    return 0.5 * (out - target).square().mean()


def test_momentum_changes_as_in_a_plain_loop():
    x, y = torch.full((1, 1), 1.5), torch.zeros(1, 1)
    cycle = o.OneCycle(total=12)
    population = Population.of(Bowl, [0, 1])
    recipe = Recipe(
        optimizer=lambda: o.ScheduledMomentum(cycle.momentum_at, weight_decay=0.1),
        rate=torch.tensor([0.2, 0.05]),
        schedule=cycle,
        steps=12,
        loss=half_square,
    )
    train(population, x, y, recipe)
    for member, rate in enumerate((0.2, 0.05)):
        w, v = 1.0, 0.0
        for step in range(12):
            v = cycle.momentum_at(step) * v + (1.5**2 + 0.1) * w
            w -= rate * cycle(step) * v
        assert population.vectors()[member].item() == pytest.approx(w, rel=1e-5)


def test_the_range_test_stops_at_the_edge_of_stability():
    x, y = torch.full((1, 1), 2.0), torch.zeros(1, 1)  # curvature 4, so rates above 0.5 diverge
    recipe = Recipe(steps=40, loss=half_square)
    population = Population.of(Bowl, [0])
    rates, losses = o.range_test(population, x, y, recipe, low=0.1, high=2.0)
    assert losses.shape == (40, 1) and population.vectors().item() == 1
    assert 0.4 < o.largest_rate(rates, losses, smooth=0.0).item() < 0.6
    with pytest.raises(UsageError, match="MT465"):
        o.range_test(population, x, y, recipe, low=1, high=0.1)


def test_the_estimate_is_the_inverse_curvature():
    x, y = torch.tensor([[[1.0]], [[3.0]]]), torch.zeros(2, 1, 1)
    population, estimate = Population.of(Bowl, [0, 1]), o.RateEstimate(lambda step: 0.02)
    recipe = Recipe(rate=0.02, steps=5, loss=half_square)
    train(population, x, y, recipe, private=(True, True), observers=[(estimate, every(1))])
    assert estimate.estimates.shape == (4, 2)
    assert torch.allclose(estimate.estimates, torch.tensor([1.0, 1 / 9]).expand(4, 2), rtol=1e-3)
    assert math.isfinite(estimate.estimates.sum())
