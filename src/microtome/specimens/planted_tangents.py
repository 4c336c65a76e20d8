"""Networks whose tangent kernel is known in closed form."""

from __future__ import annotations

import math

import torch
from torch import nn

from microtome.specimen import Specimen, Truth, specimen
from microtome.subject import Subject

PNTK = "theory/pntk"


@specimen
def one_linear_layer() -> Specimen:
    """W x + b on scaled unit vectors: the kernel of any answer is 9 on the diagonal plus 1 everywhere.

    Gradients by W are the input, by b one, and answers share no parameter, so the stand-in is exact. 24 examples of 3
    classes: an eigenvalue of 9 + 24 and 23 of 9. Centred, it is 9 times a projection, and that of the labels 8 times
    one on 2 directions within: a cosine of sqrt(2 / 23).
    """
    n, classes, square = 24, 3, 9.0
    model = nn.Linear(n, classes, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    nn.init.normal_(model.weight, generator=generator)
    x = math.sqrt(square) * torch.eye(n, dtype=torch.float64)
    subject = Subject(model, [(x, torch.arange(n) % classes)], name="one linear layer")
    total = square * n + n
    shares = [(square + n) / total] + [square / total] * (n - 1)
    rank = math.exp(-sum(s * math.log(s) for s in shares))
    why = "the kernel is 9 times the identity plus 1"
    return Specimen(
        "one linear layer", subject,
        (
            Truth(PNTK, "largest eigenvalue", square + n, 1e-10, why),
            Truth(PNTK, "mean of the diagonal", square + 1, 1e-12, why),
            Truth(PNTK, "effective rank", rank, 1e-9, why),
            Truth(PNTK, "share of the largest eigenvalue", shares[0], 1e-12, why),
            Truth(PNTK, "alignment with the labels", math.sqrt((classes - 1) / (n - 1)), 1e-12, "balanced classes"),
            Truth(PNTK, "error of the stand-in", 0.0, 1e-12, "answers share no parameter"),
        ),
    )  # fmt: skip


@specimen
def answers_that_move_together() -> Specimen:
    """V W x with W the identity and two equal rows in V: Theta is [[2, 1], [1, 2]] for each example, the stand-in 3.

    Gradients by V are W x = x, apart for the answers; by W they are v_o x, and v_o v_o' = 1. On unit vectors nothing
    couples examples. |3 I - Theta| = 2 and |Theta| = sqrt(10) for each.
    """
    n = 12
    inner, outer = (nn.Linear(a, b, bias=False, dtype=torch.float64) for a, b in ((n, n), (n, 2)))
    with torch.no_grad():
        inner.weight.copy_(torch.eye(n))
        outer.weight.fill_(1 / math.sqrt(n))
    x, y = torch.eye(n, dtype=torch.float64), torch.arange(n) % 2
    subject = Subject(nn.Sequential(inner, outer), [(x, y)], name="answers that move together")
    return Specimen(
        "answers that move together", subject,
        (
            Truth(PNTK, "error of the stand-in", 2 / math.sqrt(10), 1e-12, "counted for one example"),
            Truth(PNTK, "mean of the diagonal", 3.0, 1e-12, "1 by V, 2 by W"),
            Truth(PNTK, "effective rank", float(n), 1e-9, "3 times the identity"),
        ),
    )  # fmt: skip
