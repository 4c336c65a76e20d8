"""Means of groups, shares of confusions, and how well two orders of cells agree."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from microtome.finding import Quantity
from microtome.statistics import normal


def group_means(values: Tensor, group: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Counts [k] and mean rows [k, d] of each group; zeros where it is empty."""
    count = torch.bincount(group, minlength=k)
    total = torch.zeros(k, values.shape[1], dtype=values.dtype).index_add_(0, group, values)
    return count, total / count.clamp_min(1)[:, None]


def confusions(true: Tensor, answered: Tensor, k: int) -> Tensor:
    """[k, k] shares of each true class."""
    table = torch.bincount(true * k + answered, minlength=k * k).reshape(k, k).double()
    return table / table.sum(1, keepdim=True).clamp_min(1)


def correlation(r: float, cells: int) -> Quantity:
    """Spearman's, its interval for independent cells (Fieller, Hartley & Pearson 1957)."""
    if cells <= 3 or abs(r) >= 1:
        return Quantity(value=r, better="higher")
    low, high = (math.tanh(v) for v in normal(math.atanh(r), math.sqrt(1.06 / (cells - 3))))
    return Quantity(
        value=r, low=low, high=high, how="Fisher's z, cells taken as independent", better="higher"
    )
