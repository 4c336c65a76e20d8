"""Classifiers whose boundary is known, so that the nearest other answer is too."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from microtome.specimen import Specimen, Truth, specimen
from microtome.subject import Subject


class _Ball(nn.Module):
    """Class 1 within one unit of the centre."""

    def forward(self, x: Tensor) -> Tensor:
        """[n, d] -> [n, 2]."""
        lead = (1 - x.square().sum(1)) / 2
        return torch.stack([-lead, lead], dim=1)


@specimen
def planted_ball() -> Specimen:
    """Points at known radii around a unit ball: the nearest other answer lies straight in or out."""
    n, d = 60, 6
    generator = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(
        torch.randn(n, d, generator=generator, dtype=torch.float64), dim=1
    )
    radius = 0.4 + 1.5 * torch.arange(n, dtype=torch.float64) / n
    radius = torch.where((radius - 1).abs() < 0.02, radius + 0.05, radius)
    x = direction * radius[:, None]
    subject = Subject(
        _Ball().double(), [(x, (radius < 1).long())], task="classification", name="planted ball"
    )
    name, truth = "explain/nearest_counterfactual", float((radius - 1).abs().mean())
    options = {"examples": n}
    return Specimen(
        "planted ball",
        subject,
        (
            # The last point is drawn back to within 2^-12 of its way.
            Truth(
                name, "nearest change", truth, truth * 1e-3, "the distance to a sphere is |r - 1|", options
            ),
            Truth(name, "changed at all", 1.0, 0.0, "both classes are everywhere in reach", options),
        ),
    )


@specimen
def planted_planes() -> Specimen:
    """Three classes of a linear network within bounds: the least distance to a plane, which some bounds make longer."""
    weight = torch.tensor([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    model = nn.Linear(3, 3, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(weight)
    x = torch.tensor(
        [[0.5, 0.6, 0.1], [0.9, 0.9, 1.0], [0.1, 0.9, 0.2], [0.1, 0.2, 0.9]], dtype=torch.float64
    )
    # Scores 3 a, 2 b and c. The second: b may not pass 1, so that a goes down to 2/3 by itself. The last: class 1 is
    # likelier than class 0, which is nearer.
    feet = [0.3 / math.sqrt(13), math.hypot(0.9 - 2 / 3, 0.1), 1.5 / math.sqrt(13), 0.6 / math.sqrt(10)]
    subject = Subject(
        model, [(x.repeat(10, 1), torch.tensor([0, 0, 1, 2]).repeat(10))], bounds=(0, 1), task="classification",
        name="planted planes",
    )  # fmt: skip
    truth = sum(feet) / 4
    return Specimen(
        "planted planes",
        subject,
        (
            Truth(
                "explain/nearest_counterfactual", "nearest change", truth, truth * 1e-3,
                "distances to planes, by hand", {"examples": 40},
            ),
        ),
    )  # fmt: skip
