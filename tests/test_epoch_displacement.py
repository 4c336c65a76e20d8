"""The average epoch of shuffled descent on quadratics, where the second order is all there is; noise of gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from microtome.learn.epoch_displacement import (
    displacements,
    drawn,
    full_batch,
    noisy,
    regulariser_step,
    shuffled,
    small_rate_step,
)
from microtome.learn.flat import flat
from microtome.population import Population, Recipe, train
from microtome.population.gradient_noise import gradient_noise, weighted_at_random


def problem(spread, k=3, p=4):
    """Batches of a linear regression that differ by ``spread``: every loss is quadratic."""
    torch.manual_seed(0)
    base = torch.randn(8, p, dtype=torch.float64)
    xs = base + spread * torch.randn(k, 8, p, dtype=torch.float64)
    ys = base.sum(1) + 1 + spread * torch.randn(k, 8, dtype=torch.float64)
    return (
        (lambda theta, x, y: (x @ theta - y).square().mean() / 2),
        torch.zeros(p, dtype=torch.float64),
        xs,
        ys,
    )


def test_the_regulariser_is_the_second_order_of_the_average_epoch():
    for rate in (0.05, 0.6):
        errors = []
        for spread in (0.1, 0.05):
            args = problem(spread)
            mean = displacements(*args, shuffled(3), rate).mean(0) - full_batch(*args, rate, 3)
            errors.append(float((mean - regulariser_step(*args, rate)).norm() / mean.norm()))
        assert errors[1] < 0.05 and errors[1] < 0.7 * errors[0]


def test_for_small_rates_it_is_the_gradient_of_the_spread():
    args = problem(0.3)
    small, any_rate = small_rate_step(*args, 1e-4), regulariser_step(*args, 1e-4)
    assert torch.allclose(small, any_rate, rtol=5e-3)


def test_sequences_average_to_full_batch_steps_where_they_should():
    args = problem(0.05)
    whole = full_batch(*args, 0.3, 3)
    shuffle = (displacements(*args, shuffled(3), 0.3).mean(0) - whole).norm()
    for weights in (drawn(3), noisy(3, 500)):
        assert (displacements(*args, weights, 0.3).mean(0) - whole).norm() < 0.1 * shuffle
    assert shuffled(4).shape == (24, 4, 4) and drawn(3).shape == (27, 3, 3)


def test_injected_noise_has_the_covariance_of_a_batch():
    z = noisy(4, 20000).reshape(-1, 4)
    assert torch.allclose(z.T.cov(), torch.eye(4) / 4 - 1 / 16, atol=5e-3)


def test_a_network_as_a_function_of_a_vector():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    vector, call = flat(model)
    x = torch.randn(5, 3)
    assert vector.shape == (26,) and torch.equal(call(vector, x), model(x))
    assert torch.allclose(call(torch.zeros(26), x), torch.zeros(5, 2))


def test_gradient_noise_of_a_linear_model():
    torch.manual_seed(0)
    x, y = torch.randn(30, 3), torch.randn(30, 1)
    population = Population.of(lambda: nn.Linear(3, 1, bias=False), seeds=[0, 1])
    found = gradient_noise(population, F.mse_loss, x, y)
    for i in range(2):
        g = 2 * (population.predict(x)[i] - y) * x
        assert torch.allclose(found[i], (g - g.mean(0)).square().sum(1).mean(), rtol=1e-4)


def test_a_loss_weighted_at_random_moves_each_member_as_far_as_a_drawn_batch():
    torch.manual_seed(0)
    x, y = torch.randn(40, 3), torch.randn(40, 1)
    places = {}
    for name, recipe in {
        "drawn": Recipe(rate=1.0, steps=1, batch_size=10, order="drawn", loss=F.mse_loss),
        "noise": Recipe(rate=1.0, steps=1, loss=weighted_at_random(F.mse_loss, 10)),
    }.items():
        population = Population.of(lambda: nn.Linear(3, 1, bias=False), seeds=[0]).copy([0] * 2000)
        population.seeds = tuple(range(2000))
        train(population, x, y, recipe)
        places[name] = population.vectors()
    assert torch.allclose(places["drawn"].mean(0), places["noise"].mean(0), atol=0.08)
    spread = places["drawn"].T.cov()
    assert (spread - places["noise"].T.cov()).norm() < 0.12 * spread.norm()
