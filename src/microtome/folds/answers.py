"""A bounded sample of answers, the same for all who ask, so that it is taken once."""

from __future__ import annotations

import torch
from torch import Tensor

from microtome.folds.stock import Reservoir
from microtome.signals import labels, logits, prediction_ids
from microtome.subject import Subject

MOST_NUMBERS = 1 << 22
MOST_ROWS = 1 << 16


def answers(subject: Subject) -> Reservoir:
    """Ids [r], logits [r, k] and labels [r] of all predictions, or of a random sample when they are many.

    At most 65536 predictions and 4 million logits, but 256 predictions at least; ids ascend.
    """
    count = min(max(MOST_NUMBERS // max(subject.classes or 1, 1), 256), MOST_ROWS)
    return Reservoir(signals=(prediction_ids, logits, labels), count=count)


def log_odds(logits: Tensor) -> Tensor:
    """[m] float64 log-odds of the likeliest class: the order of max softmax, also where that rounds to 1."""
    log_p = logits.double().log_softmax(1)
    top = log_p.max(1, keepdim=True)
    rest = log_p.scatter(1, top.indices, -torch.inf).logsumexp(1)
    return top.values[:, 0] - rest
