"""What do compressed networks forget? Examples and classes on which two cohorts part (Hooker et al. 2019)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from microtome.statistics import holm


def modal(answers: Tensor, classes: int) -> Tensor:
    """[n] the class that most of N networks answer: ``answers`` [N, n]; the lower class on a tie."""
    return torch.stack([(answers == j).sum(0) for j in range(classes)]).argmax(0)


def exemplars(one: Tensor, two: Tensor, classes: int) -> Tensor:
    """[n] whether two cohorts [N, n], [M, n] differ in their modal answer: pruning-identified exemplars (PIEs)."""
    return modal(one, classes) != modal(two, classes)


def odds_ratio(flagged: Tensor, special: Tensor, confidence: float = 0.95) -> tuple[float, float, float]:
    """(odds ratio, low, high): how much likelier a special example is to be flagged; both [n] of truth values.

    Half an example is added to each of the four counts, so that none is 0 (Haldane 1956); the interval is normal in the
    logarithm, of variance the sum of the counts' inverses (Woolf 1955).
    """
    from scipy.special import ndtri

    f, s = flagged.bool(), special.bool()
    both, only_f, only_s, none = (float(part.sum()) + 0.5 for part in (f & s, f & ~s, ~f & s, ~f & ~s))
    value = math.log(both * none / (only_f * only_s))
    half = float(ndtri(0.5 + confidence / 2)) * math.sqrt(1 / both + 1 / only_f + 1 / only_s + 1 / none)
    return math.exp(value), math.exp(value - half), math.exp(value + half)


@dataclass(frozen=True)
class ClassChange:
    """How a class fares beyond the change of overall accuracy.

    Attributes:
        change: of its recall, less the change of accuracy; below 0 where compression costs it more than others.
        p: of Welch's test that it is 0, and ``p_holm`` corrected for the number of classes.
    """

    change: float
    p: float
    p_holm: float


def class_changes(one: Tensor, two: Tensor, truth: Tensor, classes: int) -> list[ClassChange]:
    """For each class, recall less accuracy of cohort two [M, n] against cohort one [N, n], with Welch's t-test.

    Each network's recall is taken relative to its own accuracy, so that a loss which all classes share does not count.
    A class without examples, or whose recall varies in neither cohort, has change 0 or its difference, and p 1 or 0.
    """
    from scipy.special import stdtr

    relative = []
    for answers in (one, two):
        right = (answers == truth).double()
        recall = torch.stack(
            [
                right[:, truth == j].mean(1) if bool((truth == j).any()) else right.mean(1)
                for j in range(classes)
            ],
            1,
        )
        relative.append((recall - right.mean(1, keepdim=True)).numpy())
    a, b = relative
    change = b.mean(0) - a.mean(0)
    parts = a.var(0, ddof=1) / len(a), b.var(0, ddof=1) / len(b)
    spread = parts[0] + parts[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        free = spread**2 / (parts[0] ** 2 / (len(a) - 1) + parts[1] ** 2 / (len(b) - 1))
        p = 2 * stdtr(free, -np.abs(change) / np.sqrt(spread))
    p = np.where(spread > 0, p, np.where(change == 0, 1.0, 0.0))
    return [
        ClassChange(float(c), float(v), h)
        for c, v, h in zip(change, p, holm([float(v) for v in p]), strict=True)
    ]


__all__ = ["ClassChange", "class_changes", "exemplars", "modal", "odds_ratio"]
