"""Pictures with a planted long tail: a rare class, wrong labels, and unusual pictures, all of them known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from microtome.errors import UsageError


@dataclass(frozen=True)
class LongTail:
    """Examples and what was done to them.

    Attributes:
        x: [m, c, h, w], h = w.
        y: [m] labels as they are given, wrong ones included.
        truth: [m] labels as they were.
        rare, wrong, atypical: [m] whether an example is of the rare class, has a wrong label, was turned or blurred.
    """

    x: Tensor
    y: Tensor
    truth: Tensor
    rare: Tensor
    wrong: Tensor
    atypical: Tensor


def long_tail(
    x: Tensor,
    y: Tensor,
    classes: int,
    *,
    rare: int,
    kept: float = 1.0,
    wrong: float = 0.0,
    atypical: float = 0.0,
    seed: int = 0,
) -> LongTail:
    """Plant a long tail into pictures x [n, c, s, s] with labels y [n].

    Args:
        x: pictures.
        y: labels.
        classes: number of classes.
        rare: the class that is thinned.
        kept: share of its examples that are left (at least one).
        wrong: share of all examples left that get another label, drawn evenly from the other classes.
        atypical: share of all examples left that are turned by a quarter (every other one) or blurred (3 x 3 mean).
        seed: of the draws.

    Raises:
        UsageError: MT499 when the class is not there or a share is outside 0..1.
    """
    of_rare = (y == rare).nonzero()[:, 0]
    if not len(of_rare) or not all(0 <= share <= 1 for share in (kept, wrong, atypical)):
        raise UsageError(
            "MT499", "no example of the rare class, or a share outside 0..1", fix="choose a class that occurs"
        )
    draw = torch.Generator().manual_seed(seed)
    dropped = of_rare[torch.randperm(len(of_rare), generator=draw)[max(round(kept * len(of_rare)), 1) :]]
    left = torch.ones(len(y), dtype=torch.bool)
    left[dropped] = False
    pictures, truth = x[left].clone(), y[left]
    m = len(truth)
    picked = torch.randperm(m, generator=draw)
    mislabelled, unusual = picked[: round(wrong * m)], picked[m - round(atypical * m) :]
    labels = truth.clone()
    labels[mislabelled] += torch.randint(1, classes, (len(mislabelled),), generator=draw)
    labels %= classes
    turned, blurred = unusual[::2], unusual[1::2]
    pictures[turned] = torch.rot90(pictures[turned], 1, (2, 3))
    pictures[blurred] = F.avg_pool2d(pictures[blurred], 3, 1, 1)
    flags = torch.zeros(2, m, dtype=torch.bool)
    flags[0, mislabelled] = True
    flags[1, unusual] = True
    return LongTail(pictures, labels, truth, truth == rare, flags[0], flags[1])


__all__ = ["LongTail", "long_tail"]
