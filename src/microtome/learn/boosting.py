"""AdaBoost with decision stumps for several classes (Freund & Schapire 1997; SAMME, Zhu et al. 2009)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from microtome.errors import UsageError


@dataclass(frozen=True)
class Stumps:
    """A weighted vote of stumps, each of which asks whether one feature exceeds a threshold.

    Attributes:
        feature, threshold: [r] what each asks.
        below, above: [r] the classes it answers.
        weight: [r] of its vote.
        classes: k.
    """

    feature: Tensor
    threshold: Tensor
    below: Tensor
    above: Tensor
    weight: Tensor
    classes: int

    def staged(self, x: Tensor) -> Tensor:
        """[r, n] what the first 1, 2, ..., r stumps answer together for [n, d]."""
        said = torch.where(x[:, self.feature] > self.threshold, self.above, self.below)  # [n, r]
        votes = (F.one_hot(said, self.classes) * self.weight[:, None]).cumsum(1)
        return votes.argmax(-1).T


def adaboost(
    x: Tensor, y: Tensor, classes: int, *, rounds: int = 200, features: int | None = None, seed: int = 0
) -> Stumps:
    """Boost stumps: x [n, d], y [n].

    Each round takes the stump of least weighted error e, gives it the vote log((1 - e) / e) + log(k - 1), and
    multiplies
    the weights of examples it gets wrong by the exponential of that. Thresholds lie between values that occur; cost is
    n d k a round for features of few values.

    Args:
        x: features; every distinct value is tried as a threshold.
        y: class numbers.
        classes: k.
        rounds: stumps, at most; rounds in which none beats chance add none.
        features: drawn anew each round by ``seed`` (None: all), which is what makes runs differ.
        seed: of the draw.

    Raises:
        UsageError: MT493 when no stump beats chance.
    """
    n, d = x.shape
    values = x.unique()
    level = torch.searchsorted(values, x.contiguous())  # [n, d]
    place = (torch.arange(d) * len(values) + level) * classes + y[
        :, None
    ]  # [n, d] cell of (feature, level, class)
    weights = torch.full((n,), 1 / n, dtype=torch.float64)
    draw = torch.Generator().manual_seed(seed)
    kept: list[tuple[int, float, int, int, float]] = []
    for _ in range(rounds):
        cells = torch.zeros(d * len(values) * classes, dtype=torch.float64)
        cells.index_add_(0, place.flatten(), weights.repeat_interleave(d))
        low = cells.view(d, len(values), classes).cumsum(1)  # weight of each class at or below a level
        (left, one), (right, two) = low.max(-1), (low[:, -1:] - low).max(-1)
        right_share = left + right  # [d, levels] weight that is answered correctly
        if features is not None:
            out = torch.randperm(d, generator=draw)[features:]
            right_share[out] = -1
        best = int(right_share.argmax())
        f, at = divmod(best, len(values))
        error = min(max(1 - float(right_share[f, at]), 1e-10), 1.0)
        if error > 1 - 1 / classes - 1e-9:  # no edge over chance among these features
            if features is None:
                break
            continue
        vote = math.log((1 - error) / error) + math.log(classes - 1)
        after = values[min(at + 1, len(values) - 1)]
        kept.append((f, float((values[at] + after) / 2), int(one[f, at]), int(two[f, at]), vote))
        said = torch.where(level[:, f] > at, two[f, at], one[f, at])
        weights = weights * torch.exp(vote * (said != y).double())
        weights /= weights.sum()
    if not kept:
        raise UsageError("MT493", "no stump tells the classes apart", fix="give features that vary")
    feature, threshold, below, above, weight = (torch.tensor(column) for column in zip(*kept, strict=True))
    return Stumps(feature, threshold.to(x), below, above, weight, classes)


__all__ = ["Stumps", "adaboost"]
