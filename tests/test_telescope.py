"""Chains of first-order steps: exact for linear models, close for networks; label weights against algebra."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from microtome.errors import UsageError
from microtome.learn.squared_error import half_squared_error
from microtome.nn.centred_polynomial import CentredPolynomial
from microtome.population import Population, Recipe, every, train
from microtome.population.telescope import Smoother, Telescope, linearised


def mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def data():
    torch.manual_seed(0)
    return torch.randn(12, 4).double(), torch.randn(12, 1).double(), torch.randn(5, 4).double()


def test_the_error_of_the_chain_is_of_second_order_in_the_rate_and_below_that_of_one_step():
    x, y, far = data()
    errors = []
    for rate, steps in ((0.1, 40), (0.05, 80)):
        population = Population.of(mlp, seeds=[0, 1])
        start, telescope = population.copy(), Telescope(population, far)
        recipe = Recipe(
            rate=rate, steps=steps, loss=half_squared_error, batch_size=6, options={"momentum": 0.5}
        )
        train(population, x, y, recipe, observers=[(telescope, every(1))])
        answers = population.predict(far)
        errors.append(float((telescope.estimate - answers).norm()))
        assert errors[-1] < 0.3 * float((linearised(start, population, far) - answers).norm())
    assert errors[1] < 0.7 * errors[0]


def test_a_linear_model_is_exact_in_both():
    x, y, far = data()
    population = Population.of(lambda: nn.Linear(4, 1).double(), seeds=[0])
    start, telescope = population.copy(), Telescope(population, far)
    smoother = Smoother(population, x, far, 0.1)
    recipe = Recipe(rate=0.1, steps=7, loss=half_squared_error)
    train(population, x, y, recipe, observers=[(telescope, every(1)), (smoother, every(3))])
    answers = population.predict(far)
    assert torch.allclose(telescope.estimate, answers) and torch.allclose(
        linearised(start, population, far), answers
    )
    assert torch.allclose(smoother.estimate(y)[:, 12:], answers[..., 0])


def test_effective_parameters_of_converged_least_squares_are_its_parameters():
    x, y, _ = data()
    population = Population.of(lambda: nn.Linear(4, 1, bias=False).double(), seeds=[0])
    smoother = Smoother(population, x, x, torch.tensor([0.3]))
    recipe = Recipe(rate=torch.tensor([0.3]), steps=500, loss=half_squared_error)
    train(population, x, y, recipe, observers=[(smoother, every(100))])
    assert torch.allclose(smoother.weights[0, :12], x @ torch.linalg.pinv(x), atol=1e-8)
    assert [float(v) for v in smoother.effective_parameters()] == pytest.approx([4, 4], abs=1e-6)


def test_label_weights_add_up_to_the_answers_of_a_network():
    x, y, far = data()
    population = Population.of(mlp, seeds=[0, 1])
    smoother = Smoother(population, x, far, 0.01)
    recipe = Recipe(rate=0.01, steps=200, loss=half_squared_error)
    train(population, x, y, recipe, observers=[(smoother, every(1))])
    answers = population.predict(torch.cat([x, far]))[..., 0]
    assert float((smoother.estimate(y) - answers).norm() / answers.norm()) < 0.02
    with pytest.raises(UsageError, match="MT464"):
        Smoother(Population.of(lambda: nn.Linear(4, 2).double(), seeds=[0]), x, far, 0.1)


def test_a_centred_polynomial_starts_at_nothing_and_scales_with_alpha():
    torch.manual_seed(0)
    model, x = CentredPolynomial(4, 8, alpha=3.0, epsilon=0.5), torch.randn(6, 4)
    assert torch.equal(model(x), torch.zeros(6, 1))
    nn.init.zeros_(model.weight)
    h = x @ model.first.T / 2
    assert torch.allclose(model(x), -3 * (h + h.square() / 4).mean(1, keepdim=True), atol=1e-6)
