"""Labels some of which are wrong on purpose: an exact share of them, or each drawn anew with a probability."""

from __future__ import annotations

import torch
from torch import Tensor


def wrong_labels(labels: Tensor, share: float, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(labels [n], whether each is wrong [n]): a share of all rows, rounded, moved to another class at random.

    The wrong class is never the right one, so the share is exact.
    """
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[torch.randperm(len(labels), generator=draw)[: round(share * len(labels))]] = True
    other = (labels + torch.randint(1, classes, labels.shape, generator=draw)) % classes
    return torch.where(chosen, other, labels), chosen


def corrupted_labels(y: Tensor, share: float, classes: int, *, seed: int = 0) -> Tensor:
    """Labels [n] of which each is, with probability ``share``, drawn anew from all classes (and may stay the same)."""
    draw = torch.Generator().manual_seed(seed)
    hit = torch.rand(len(y), generator=draw) < share
    return torch.where(hit, torch.randint(classes, y.shape, generator=draw).to(y), y)


__all__ = ["corrupted_labels", "wrong_labels"]
