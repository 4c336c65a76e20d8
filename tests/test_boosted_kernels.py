"""A chain of leaf kernels is the boosted model it was read off, prediction by prediction."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from microtome.errors import UsageError
from microtome.learn.boosted_kernels import leaf_kernels

ensemble = pytest.importorskip("sklearn.ensemble")


def table():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, generator=draw)
    return x[:40], x[40:], (x[:40, 0] * x[:40, 1]).numpy()


def test_the_chain_of_kernels_predicts_what_the_model_predicts():
    x, others, y = table()
    model = ensemble.GradientBoostingRegressor(n_estimators=12, max_depth=2, random_state=0).fit(x.numpy(), y)
    shown = torch.cat([x, others])
    answers = torch.full((60,), float(y.mean()), dtype=torch.float64)
    kernels = list(leaf_kernels(model, x, shown))
    assert len(kernels) == 12
    for kernel, staged in zip(kernels, model.staged_predict(shown.numpy()), strict=True):
        assert torch.allclose(kernel.sum(1), torch.ones(60, dtype=torch.float64))
        answers = answers + 0.1 * kernel @ (torch.from_numpy(y) - answers[:40])
        assert np.allclose(answers.numpy(), staged, atol=1e-6)


def test_other_boosting_is_no_such_chain():
    x, _, y = table()
    for options in ({"loss": "huber"}, {"subsample": 0.5}):
        model = ensemble.GradientBoostingRegressor(n_estimators=2, **options).fit(x.numpy(), y)
        with pytest.raises(UsageError, match="MT520"):
            next(leaf_kernels(model, x, x))
