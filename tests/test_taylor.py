"""Taylor models against explicit Hessians; tangent kernels in closed form and along a step of gradient descent."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import hessian, jacrev

from microtome.errors import UsageError
from microtome.learn.flat import flat
from microtome.learn.squared_error import half_squared_error
from microtome.nn.ntk_mlp import NTKMLP, NTKLinear
from microtome.nn.taylor import Taylor
from microtome.population import Population, Recipe, train
from microtome.population.tangent_kernel import jacobians, tangent_kernels


def test_both_orders_against_the_jacobian_and_the_hessian():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    vector, call = flat(model)
    d = torch.randn_like(vector)
    first = jacrev(call)(vector, x) @ d
    second = torch.einsum("nkpq,p,q->nk", hessian(call)(vector, x), d, d)
    for order, wanted in ((1, model(x) + first), (2, model(x) + first + second / 2)):
        taylor = Taylor(model, order)
        assert torch.equal(taylor(x), model(x))
        nn.utils.vector_to_parameters(d, taylor.parameters())
        assert torch.allclose(taylor(x), wanted)
    with pytest.raises(UsageError, match="MT463"):
        Taylor(model, 3)


@pytest.mark.parametrize("order", [1, 2])
def test_a_population_of_taylor_models_takes_the_networks_first_step(order):
    x, y = torch.randn(6, 3), torch.randn(6, 1)
    nets = Population.of(lambda: NTKMLP([3, 8, 1]), seeds=[0, 1])
    models = Population([Taylor(net, order) for net in nets])
    assert torch.allclose(models.predict(x), nets.predict(x))
    before = nets.vectors()
    recipe = Recipe(rate=0.1, steps=1, loss=half_squared_error)
    done = train(models, x, y, recipe)
    train(nets, x, y, recipe)
    assert done.route == "traced" and torch.allclose(models.vectors(), nets.vectors() - before, atol=1e-6)
    train(models, x, y, Recipe(rate=0.1, steps=3, loss=half_squared_error))
    assert (models.predict(x) - y).square().mean() < (nets.predict(x) - y).square().mean() * 2


def test_the_kernel_of_a_linear_layer():
    torch.manual_seed(0)
    population = Population.of(lambda: NTKLinear(4, 2, beta=0.5), seeds=[0, 1, 2])
    x = torch.randn(5, 4)
    one = x @ x.T / 4 + 0.25  # for each output, and none between outputs
    wanted = torch.kron(one, torch.eye(2))
    assert torch.allclose(tangent_kernels(population, x), wanted.expand(3, -1, -1), atol=1e-6)
    assert next(jacobians(population, x)).shape == (5, 2, 10)


def test_the_kernel_moves_the_answers():
    torch.manual_seed(0)
    population = Population.of(lambda: NTKMLP([3, 16, 2], torch.tanh).double(), seeds=[0, 1])
    x, y = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    kernels, before = tangent_kernels(population, x), population.predict(x)
    train(population, x, y, Recipe(rate=1e-5, steps=1, loss=half_squared_error))
    moved = -1e-5 * (kernels @ (before - y).flatten(1)[..., None])[..., 0] / 5
    assert torch.allclose((population.predict(x) - before).flatten(1), moved, rtol=1e-3, atol=1e-10)


def test_the_scale_of_a_wide_network_does_not_depend_on_its_width():
    x = torch.nn.functional.normalize(torch.randn(1, 10), dim=1) * 10**0.5
    for width in (64, 256):
        population = Population.of(lambda w=width: NTKMLP([10, w, w, 1]), seeds=range(100))
        assert float(population.predict(x).square().mean()) == pytest.approx(1, abs=0.6)
