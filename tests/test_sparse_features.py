"""Features with few entries: the same answers and slopes as of the dense tensor, and the zeros are not multiplied."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from microtome.graphs.sparse_features import SparseFeatures, sparse_features


@pytest.fixture
def x():
    torch.manual_seed(0)
    dense = torch.zeros(30, 40, dtype=torch.float64)
    dense[torch.randint(30, (60,)), torch.randint(40, (60,))] = torch.randn(60, dtype=torch.float64)
    dense[:, 7] = 0.0  # a column and a row without entries
    dense[4] = 0.0
    return dense


class Twice(nn.Module):
    """Uses its features in a product and, if ``other``, in another way as well."""

    def __init__(self, *, dropped: float = 0.0, other: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(40, 5).double()
        self.dropped, self.other = dropped, other

    def forward(self, x):
        x = F.dropout(x, self.dropped, self.training) if self.dropped else x
        found = self.linear(x)
        return found + x.abs().sum(1, keepdim=True) if self.other else found


@pytest.mark.parametrize("dropped", [0.0, 0.5])
@pytest.mark.parametrize("other", [False, True])
def test_same_answers_and_slopes_in_eval_mode(x, dropped, other):
    model = Twice(dropped=dropped, other=other).eval()
    wanted = model(x)
    slopes = torch.autograd.grad(wanted.sin().sum(), list(model.parameters()))
    with sparse_features(x):
        found = model(x)
        own = torch.autograd.grad(found.sin().sum(), list(model.parameters()))
    assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)
    for a, b in zip(own, slopes, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def test_dropout_is_one_draw_however_its_result_is_used(x):
    """Product and sum of the dropped features must speak of the same draw."""
    model = Twice(dropped=0.5, other=True).train()
    held = SparseFeatures(x)
    torch.manual_seed(3)
    with sparse_features(held):
        found = model(x)
    torch.manual_seed(3)
    dropped = held.filled(F.dropout(held.values, 0.5, True))
    wanted = F.linear(dropped, model.linear.weight, model.linear.bias) + dropped.abs().sum(1, keepdim=True)
    assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)


def test_other_values_and_the_slope_by_them(x):
    model, held = Twice(other=True), SparseFeatures(x)
    values = (2 * held.values).requires_grad_()
    with sparse_features(held, values):
        found = model(x)
    (own,) = torch.autograd.grad(found.sin().sum(), values)
    dense = (2 * x).requires_grad_()
    wanted = model(dense)
    (slope,) = torch.autograd.grad(wanted.sin().sum(), dense)
    assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)
    assert torch.allclose(own, slope[held.row, held.column], rtol=1e-12, atol=1e-12)


def test_the_zeros_are_not_multiplied(x):
    """Weights of columns without entries may be anything, which a dense product would show."""
    model = Twice()
    with torch.no_grad():
        model.linear.weight[:, 7] = float("nan")
    assert model(x).isnan().any()
    with sparse_features(x):
        assert not model(x).isnan().any()


def test_dense_features_and_wanted_gradients_are_left_alone(x):
    model, full = Twice(), torch.randn(30, 40, dtype=torch.float64)
    with sparse_features(full):
        assert torch.equal(model(full), F.linear(full, model.linear.weight, model.linear.bias))
    leaf = x.clone().requires_grad_()
    with sparse_features(leaf):
        assert torch.autograd.grad(model(leaf).sum(), leaf)[0].any()
