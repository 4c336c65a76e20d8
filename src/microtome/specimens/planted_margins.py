"""Classifiers whose distance to the next answer is known: under shifts, and under attack."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from microtome.finding import Finding
from microtome.specimen import Specimen, Truth, specimen
from microtome.subject import Subject


class _LeftOrRight(nn.Module):
    """Which half of the image is brighter."""

    def forward(self, x: Tensor) -> Tensor:
        """[n, 1, h, w] -> [n, 2]."""
        half = x.shape[-1] // 2
        return torch.stack([x[..., :half].sum((1, 2, 3)), x[..., half:].sum((1, 2, 3))], dim=1)


@specimen
def single_pixels() -> Specimen:
    """One lit pixel at each of the 16 inner places of a 6 x 6 image; the answer is its half."""
    at = torch.arange(16)
    row, column = at // 4 + 1, at % 4 + 1
    images = torch.zeros(16, 1, 6, 6)
    images[at, 0, row, column] = 1.0
    subject = Subject(_LeftOrRight(), [(images, (column >= 3).long())], name="single pixels")
    name = "reliability/rics_one_pixel_translation"
    why = "right flips the third column, left the fourth, up and down none"
    return Specimen(
        "single pixels",
        subject,
        (
            Truth(name, "flip rate", 1 / 8, 1e-12, why),
            Truth(name, "flipped by some shift", 1 / 2, 1e-12, why),
        ),
    )


class _Hyperplane(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        """[n, d] -> one logit [n, 1]."""
        return ((x - 0.5) @ self.weight)[:, None]


@specimen
def planted_margins() -> Specimen:
    """A hyperplane; example i lies at a known distance from it, in the norm of the attack."""
    d, n = 8, 100
    weight = torch.tensor([4.0, -3.0, 2.0, -2.0, 1.0, 1.0, -0.5, 0.5])
    distance = 0.001 + 0.002 * torch.arange(n)  # largest change that is needed: 0.001 to 0.199
    side = torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0)
    x = 0.5 + side[:, None] * distance[:, None] * weight.sign()
    subject = Subject(
        _Hyperplane(weight),
        [(x, (side > 0).long())],
        bounds=(0, 1),
        task="classification",
        name="planted margins",
    )
    name, why = "security/adversarial_accuracy", "the distance to a hyperplane is margin / dual norm"
    at = 8 / 255
    # The same margins, as root mean square distances along the weight itself.
    square = distance * float(weight.abs().sum() / weight.norm()) / math.sqrt(d)
    survive, survive_square = (float((v > at).double().mean()) for v in (distance, square))
    return Specimen(
        "planted margins",
        subject,
        (
            Truth(name, "adversarial accuracy", survive, 1e-9, why),
            Truth(name, "adversarial accuracy", survive_square, 1e-9, why + " (l2)", options={"norm": "l2"}),
            Truth(name, "gates failed", 0.0, 0.0, "a linear network hides nothing from its gradient"),
        ),
    )


class _Steps(nn.Module):
    """A hyperplane behind a staircase: the gradient is zero everywhere, the answers are as before."""

    def forward(self, x: Tensor) -> Tensor:
        """[n, d] -> [n, 2]."""
        total = ((x * 64).round() / 64 - 0.5).sum(1)
        return torch.stack([-total, total], dim=1)


@specimen
def masked_gradients() -> Specimen:
    """A network that only looks robust: its staircase has no slope to climb."""
    n, d = 64, 6
    side = torch.arange(n) % 2
    x = 0.5 + (2.0 * side - 1)[:, None] * (0.1 + 0.002 * torch.arange(n))[:, None] * torch.ones(d)
    subject = Subject(_Steps(), [(x, side)], bounds=(0, 1), name="masked gradients")

    def slopes(finding: Finding) -> float:
        return float(finding.tables["gates"].rows[0][2] or 0)

    def left(finding: Finding) -> float:
        return float(finding.tables["gates"].rows[-1][2] or 0)

    name, why = "security/adversarial_accuracy", "rounding has a zero gradient"
    return Specimen(
        "masked gradients",
        subject,
        (
            Truth(name, "share without slope", 1.0, 1e-12, why, read=slopes),
            Truth(
                name,
                "accuracy under an unbounded attack",
                1.0,
                1e-12,
                why + ", so no attack moves",
                read=left,
            ),
        ),
    )
