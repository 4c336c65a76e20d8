"""Boosted trees as a chain of kernels, to lay beside a network's (Jeffares, Curth & van der Schaar 2024).

For squared error a tree answers the mean residual of a leaf, so that boosting of rate r goes

    f_t(x) = f_(t-1)(x) + r sum_i K_t(x, x_i) (y_i - f_(t-1)(x_i)),   K_t(x, x_i) = 1 / |leaf| in one leaf, else 0,

as gradient descent of a network does with its tangent kernel and r = rate / n. A row of K_t sums to 1 and is at most 1
long, 1 / sqrt(|leaf|), whatever x is; a network's kernel has no such bound.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from microtome.errors import UsageError


def leaf_kernels(model: Any, train: Tensor, inputs: Tensor) -> Iterator[Tensor]:
    """[m, n] K_t between inputs [m, d] and training points [n, d], of one tree after another.

    Args:
        model: a fitted ``sklearn.ensemble.GradientBoostingRegressor`` for squared error, without subsampling.

    Raises:
        UsageError: MT520 for one whose leaves are no means over all training points.
    """
    if model.loss != "squared_error" or model.subsample != 1:
        raise UsageError(
            "MT520",
            f"boosting of loss {model.loss} on {model.subsample:g} of the data is no such chain",
            fix="GradientBoostingRegressor(loss='squared_error', subsample=1.0)",
        )
    ours, theirs = (
        torch.from_numpy(model.apply(x.numpy())).long() for x in (inputs, train)
    )  # [m, t], [n, t]
    for here, there in zip(ours.T, theirs.T, strict=True):
        same = (here[:, None] == there).double()
        yield same / same.sum(1, keepdim=True)


__all__ = ["leaf_kernels"]
