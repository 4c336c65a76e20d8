"""Networks that read known parts of their input, so that a map of relevance can be right or wrong."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from microtome.finding import Finding
from microtome.folds import row_uniform
from microtome.specimen import Specimen, Truth, specimen
from microtome.subject import Subject

PLANTED = (9, 22, 37, 50)
"""Pixels of an 8 x 8 image."""
LOW, SPAN = 0.2, 0.6


class _FourPixels(nn.Module):
    """Probability of class 0 is 0.2 + 0.6 times the mean of four pixels; nothing else is read."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Parameter(torch.full((len(PLANTED),), SPAN / len(PLANTED)))

    def forward(self, x: Tensor) -> Tensor:
        """[n, 1, 8, 8] -> log-probabilities [n, 2]."""
        p = LOW + x.flatten(1)[:, list(PLANTED)] @ self.read
        return torch.stack([p, 1 - p], dim=1).log()


class _Quartic(nn.Module):
    """The margin is the sum of the fourth powers."""

    def forward(self, x: Tensor) -> Tensor:
        """[n, d] -> [n, 2]."""
        total = x.pow(4).sum(1)
        return torch.stack([total, torch.zeros_like(total)], dim=1)


class _TwoCorners(nn.Module):
    """Channels pass unchanged through a convolution, are averaged over the picture and weighed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1, bias=False)
        self.head = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(2)[:, :, None, None])
            self.head.weight.copy_(torch.tensor([[4.0, -1.0], [-1.0, 4.0]]))

    def forward(self, x: Tensor) -> Tensor:
        """[n, 2, 8, 8] -> [n, 2]."""
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


def _on_planted(finding: Finding) -> float:
    """Share of the map that lies on the planted pixels."""
    maps = abs(finding.arrays["maps"].reshape(len(finding.arrays["rows"]), -1))
    return float(maps[:, list(PLANTED)].sum() / maps.sum())


@specimen
def four_pixels() -> Specimen:
    """Four of 64 pixels decide, linearly in the probability; they are 1 in every image, the rest is noise."""
    n = 64
    x = row_uniform(torch.arange(n * 64), 3).float().reshape(n, 64)
    x[:, list(PLANTED)] = 1.0
    subject = Subject(
        _FourPixels(), [(x.reshape(n, 1, 8, 8), torch.zeros(n, dtype=torch.long))], name="four pixels"
    )
    # The four come first and fill the first of 16 steps: one trapezoid of width 1/16 lies below the top.
    corner = SPAN / 32
    # The area of a random order is linear in the mean place of the four: sd sqrt(1/12/4 * 60/63) a curve.
    chance = 4 * 2 * math.sqrt(60 / 63 / 48) / math.sqrt(n)
    options = {"examples": tuple(range(n))}
    truths: list[Truth] = []
    for method in ("input_gradient", "smoothgrad", "integrated_gradients"):
        name, why = f"explain/{method}", "only four pixels are read, and they are of equal weight"
        truths += [
            Truth(name, "share of the map on what is read", 1.0, 1e-6, why, options, _on_planted),
            Truth(name, "insertion", LOW + SPAN - corner, 1e-5, why, options),
            Truth(name, "deletion", LOW + corner, 1e-5, why, options),
            Truth(
                name,
                "gain over random",
                1 - 1 / 16,
                chance,
                why + "; 4 standard errors of the order",
                options,
            ),
        ]
    ig = "explain/integrated_gradients"
    truths.append(
        Truth(ig, "completeness error", 0.0, 1e-5, "32 Gauss-Legendre points are exact here", options)
    )
    return Specimen("four pixels", subject, tuple(truths))


@specimen
def quartic_path() -> Specimen:
    """Sum of fourth powers: along the path the gradient is a cubic, so the error of each rule is known."""
    x = 0.5 + row_uniform(torch.arange(24 * 5), 4).float().reshape(24, 5)
    subject = Subject(_Quartic(), [(x, torch.zeros(24, dtype=torch.long))], name="quartic path")
    name = "explain/integrated_gradients"
    cubic = "midpoint sums of a cubic are 1 - 1 / (2 n^2) of the integral"
    midpoint = {"rule": "midpoint", "steps": 4}
    exact = {"rule": "gauss-legendre", "steps": 2}
    return Specimen(
        "quartic path", subject,
        (
            Truth(name, "completeness error", 1 / 32, 1e-5, cubic, midpoint),
            Truth(name, "completeness error", 0.0, 1e-5, "two Gauss points are exact for cubics", exact),
        ),
    )  # fmt: skip


@specimen
def two_corners() -> Specimen:
    """A convolution, pooling and a linear head: XGrad-CAM is the class activation map, in closed form."""
    n = 32
    labels = torch.arange(n) % 2
    x = torch.zeros(n, 2, 8, 8)
    x[labels == 0, 0, :4, :4] = 1.0
    x[labels == 1, 1, 4:, 4:] = 1.0
    x[:, :, 0, 7] = 0.25  # something of both channels: it counts 4 - 1 for either class
    subject = Subject(_TwoCorners(), [(x, labels)], name="two corners")
    name, why = (
        "explain/xgrad_cam",
        "the map is sum_c w_c A_c / 64: 4 on 16 pixels of the corner, 0.75 on one",
    )
    options = {"examples": tuple(range(n))}

    def corner(finding: Finding) -> float:
        maps, classes = finding.arrays["maps"], finding.arrays["classes"]
        own = maps[classes == 0, :4, :4].sum() + maps[classes == 1, 4:, 4:].sum()
        return float(own / maps.sum())

    def peak(finding: Finding) -> float:
        return float(finding.arrays["maps"].max())

    return Specimen(
        "two corners", subject,
        (
            Truth(name, "share of the map in the corner", 64 / 64.75, 1e-6, why, options, corner),
            Truth(name, "largest value of the map", 4 / 64, 1e-7, why, options, peak),
            Truth(name, "conservation error", 0.0, 1e-6, "a linear head conserves the score", options),
        ),
    )  # fmt: skip
