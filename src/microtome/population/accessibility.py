"""In which order examples are learnt, and whether networks agree on it (Hacohen, Choshen & Weinshall 2020).

All read a table ``correct`` [t, N, n]: whether, at t moments of training, each of N networks answers each of n examples
correctly, as :meth:`microtome.population.Recording.correct` gives.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from microtome.population.statistics import shared_outcomes
from microtome.statistics import spearman


def accessibility(correct: Tensor) -> Tensor:
    """[n] how early and by how many each example is learnt: its share of correct answers over networks and time.

    Moments count alike, so where they are dense the order is fine.
    """
    return correct.double().mean((0, 1))


def shared_order(correct: Tensor, *, halvings: int = 20, seed: int = 0) -> float:
    """Rank correlation of accessibility between disjoint halves of the networks, mean over random halvings.

    1 when all learn in one order, about 0 when each has its own. Larger halves average more of what is private to a
    network out, so compare values of equal N. 0 when accessibility is the same for all examples.
    """
    each, draw = correct.double().mean(0).numpy(), np.random.default_rng(seed)  # [N, n]
    found = []
    for _ in range(halvings):
        order = draw.permutation(len(each))
        one, two = order[: len(each) // 2], order[len(each) // 2 :]
        found.append(spearman(each[one].mean(0), each[two].mean(0)) or 0.0)
    return float(np.mean(found))


def concordance(correct: Tensor) -> Tensor:
    """[t] how far the networks get the same examples right, beyond what their accuracies bring about.

    (observed / independent - 1) / (N - 1), of the variance over examples of the share of networks that are right
    (:func:`microtome.population.statistics.shared_outcomes`): 0 when they choose independently, 1 when all get the same
    examples right; for equal accuracies it is the mean correlation of two networks' outcomes, whatever N. 0 where all
    are right or all wrong.
    """
    found = []
    for table in correct:
        observed, null = shared_outcomes(table)
        found.append((observed / null - 1) / (correct.shape[1] - 1) if null > 0 else 0.0)
    return torch.tensor(found, dtype=torch.float64)


__all__ = ["accessibility", "concordance", "shared_order"]
