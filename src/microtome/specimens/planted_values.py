"""A network whose errors are fixed by hand: how far off it is follows from a sum."""

from __future__ import annotations

import torch
from torch import nn

from microtome.specimen import Specimen, Truth, specimen
from microtome.subject import Subject


@specimen
def planted_values() -> Specimen:
    """300 examples of two values that are 2 off, one a third of the time above, the other always below.

    The targets are -3 and 3 in turn, of mean 0 and variance 9; residuals are (+2 or 0, -1).
    """
    count = torch.arange(300)
    targets = torch.stack([3.0 - 6.0 * (count % 2), 6.0 * (count % 2) - 3.0], 1)
    off = torch.stack([2.0 * (count % 3 == 0), -torch.ones(300)], 1)
    answers = targets + off
    subject = Subject(
        nn.Identity(),
        [(answers[i : i + 70], targets[i : i + 70]) for i in range(0, 300, 70)],
        task="regression",
        name="planted values",
    )
    name, why = "reliability/regression_error", "residuals are planted: a third +2, else 0; and -1"
    square = (4 / 3 + 1) / 2
    return Specimen(
        "planted values",
        subject,
        (
            Truth(name, "mean squared error", square, 1e-12, why),
            Truth(name, "mean absolute error", (2 / 3 + 1) / 2, 1e-12, why),
            Truth(name, "bias", (2 / 3 - 1) / 2, 1e-12, why),
            Truth(name, "share explained", 1 - square / 9, 1e-12, why + "; targets have variance 9"),
        ),
    )
