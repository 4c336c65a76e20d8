"""Closed-form mode curves, the tree and its singular values, the starts of deep linear networks."""

from __future__ import annotations

import pytest
import torch

from microtome.data.tree import tree, tree_values
from microtome.errors import UsageError
from microtome.learn.deep_linear import (
    learning_time,
    mode_strength,
    modes,
    strengths,
    sufficient,
    whitened,
)
from microtome.learn.squared_error import half_squared_error
from microtome.nn.deep_linear import DeepLinear, aligned_, gaussian_, orthogonal_, pretrained_, total


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_mode_curves_solve_their_equation(layers):
    s, start, tau = torch.tensor([0.5, 2.0]), torch.tensor([0.01, 0.3]), 10.0
    times = torch.arange(0, 40, 2.0)
    found = mode_strength(times, s, start, layers=layers, tau=tau)
    a, fine = start.double().clone(), 2000
    for i, row in enumerate(found):
        assert torch.allclose(row, a, atol=2e-3)
        for _ in range(fine if i + 1 < len(found) else 0):
            a = a + 2.0 / fine / tau * layers * a ** (2 - 2 / layers) * (s - a)


def test_the_learning_time_is_where_the_curve_passes():
    s, start = torch.tensor([0.7, 3.0]).double(), torch.tensor([0.01, 0.02]).double()
    for i, t in enumerate(learning_time(s, start, 0.4, tau=5.0)):
        assert float(mode_strength(t[None], s, start, tau=5.0)[0, i]) == pytest.approx(
            0.4 * float(s[i]), rel=1e-6
        )


def test_a_mode_that_is_not_there_has_no_curve():
    with pytest.raises(UsageError, match="MT461"):
        mode_strength(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([0.1]))


@pytest.mark.parametrize("depth", [1, 3, 4])
def test_the_tree_has_the_singular_values_it_says(depth):
    x, y = tree(depth)
    assert torch.allclose(x.T @ x / len(x), torch.eye(len(x)))
    _, s, _ = modes(x, y)
    assert torch.allclose(s.double(), tree_values(depth), atol=1e-5)


def test_sufficient_examples_give_the_same_gradient():
    torch.manual_seed(0)
    x, y = whitened(torch.randn(50, 6).double(), 4), torch.randn(50, 3).double()
    assert torch.allclose(x.T @ x / 50, torch.eye(4).double(), atol=1e-12)
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    found = [
        torch.autograd.grad(half_squared_error(a @ weight.T, b), weight)[0]
        for a, b in ((x, y), sufficient(x, y))
    ]
    assert torch.allclose(*found)


def test_an_aligned_start_has_the_strengths_asked_for():
    torch.manual_seed(0)
    left, right = torch.linalg.qr(torch.randn(5, 3))[0], torch.linalg.qr(torch.randn(7, 3))[0]
    wanted = torch.tensor([0.3, 0.2, 0.1])
    model = aligned_(DeepLinear([7, 9, 8, 5]), left, right, wanted)
    assert torch.allclose(strengths(model.product(), left, right), wanted, atol=1e-6)
    assert torch.allclose(model.product(), left @ torch.diag(wanted) @ right.T, atol=1e-6)


def test_starts():
    torch.manual_seed(0)
    model = orthogonal_(DeepLinear([6] * 9), 0.9)
    assert torch.allclose(torch.linalg.svdvals(model.product()), torch.full((6,), 0.9**8), atol=1e-5)
    values = torch.linalg.svdvals(gaussian_(DeepLinear([400, 400])).product().detach())
    assert float(values.square().mean()) == pytest.approx(1, abs=0.05) and float(values[0]) > 1.8


def test_pretraining_ends_where_gradient_descent_of_a_tied_autoencoder_does():
    torch.manual_seed(3)
    layer = pretrained_(DeepLinear([6, 4]))
    torch.manual_seed(3)
    w = next(gaussian_(DeepLinear([6, 4]), 0.1).parameters()).detach().clone().requires_grad_()
    for _ in range(4000):  # white inputs: the loss is that of the identity
        (gradient,) = torch.autograd.grad((torch.eye(6) - w.T @ w).square().sum(), w)
        w = (w - 0.02 * gradient).detach().requires_grad_()
    assert torch.allclose(layer.product(), total([w]).detach(), atol=1e-3)
