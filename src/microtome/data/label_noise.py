"""Labels some of which are wrong on purpose, and which ones."""

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


__all__ = ["wrong_labels"]
