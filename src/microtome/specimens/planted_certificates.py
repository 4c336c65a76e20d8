"""Networks whose certified radius, tightness of bounds and safety on a grid are known in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from microtome.finding import Finding
from microtome.folds import row_uniform
from microtome.specimen import Specimen, Truth, specimen
from microtome.subject import Subject


class _Plane(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.head = nn.Linear(len(weight), 1).to(weight.dtype)
        with torch.no_grad():
            self.head.weight.copy_(weight[None])
            self.head.bias.copy_(-weight.sum()[None] / 2)

    def forward(self, x: Tensor) -> Tensor:
        """[n, d] -> one logit [n, 1], 0 at the centre of the cube."""
        return self.head(x)


@specimen
def planted_radii() -> Specimen:
    """A hyperplane: the certified radius is the margin over the l1 norm of the weights, by either bound."""
    weight = torch.tensor([4.0, -3.0, 2.0, -2.0, 1.0, 1.0, -0.5, 0.5], dtype=torch.float64)
    n = 100
    distance = 0.001 + 0.002 * torch.arange(n, dtype=torch.float64)  # 0.001 to 0.199
    side = torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0).double()
    x = 0.5 + side[:, None] * distance[:, None] * weight.sign()
    data = [(x, (side > 0).long())]
    subject = Subject(_Plane(weight), data, bounds=(0, 1), task="classification", name="planted radii")
    name, why = "security/certified_accuracy", "the distance to a hyperplane is margin / dual norm"
    options = {
        "examples": n, "strengths": (0.05, 0.1, 0.2), "at": 0.1, "interval_steps": 20, "linear_steps": 20,
    }  # fmt: skip
    held = float((distance > 0.1).double().mean())
    halved = 0.1 / 2**20  # what 20 halvings of the widest gap leave
    dlv = "security/dlv_safety_verification"
    # Free are the four heaviest weights; the worst of their grid is a corner, cut to the cube nowhere.
    heaviest = weight.abs().sort(descending=True).values[:4].sum()
    margin = distance * weight.abs().sum()
    safe = float((margin > 0.1 * heaviest).double().mean())
    grid = {"examples": n, "free": 4, "levels": 3, "radius": 0.1}
    return Specimen(
        "planted radii", subject,
        (
            Truth(name, "certified accuracy", held, 1e-9, why, options),
            Truth(name, "certified accuracy, intervals", held, 1e-9, why, options),
            Truth(name, "accuracy under PGD", held, 1e-9, why + ", and PGD finds it", options),
            Truth(name, "mean certified radius", float(distance.mean()), halved, why, options),
            Truth(name, "violations", 0.0, 0.0, "bounds are sound", options),
            Truth(dlv, "safe", safe, 1e-9, "a hyperplane is worst at a corner of the grid", grid),
        ),
    )  # fmt: skip


@specimen
def hadamard() -> Specimen:
    """Two linear layers with the Hadamard matrix H of order 8: H H = 8 I, but |H| |H| has sums of 64.

    A step of e moves each output by 8 e; intervals allow 64 e.
    """
    matrix = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(3):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    layers = [nn.Linear(8, 8, bias=False).double() for _ in range(2)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(matrix)
    x = torch.linspace(0.3, 0.7, 96, dtype=torch.float64).reshape(12, 8)
    subject = Subject(nn.Sequential(*layers), [(x, torch.arange(12) % 8)], bounds=(0, 1), name="hadamard")
    name, why = "security/bound_tightness", "|W_2 W_1| 1 = 8 and |W_2| |W_1| 1 = 64"
    options = {"radius": 0.01, "examples": 12}
    return Specimen(
        "hadamard", subject,
        (
            Truth(name, "tightness", 1 / 8, 1e-9, why, options),
            Truth(name, "tightness, at most", 1 / 8, 1e-9, why + "; linear bounds are exact", options),
            Truth(name, "width of the interval box", 2 * 64 * 0.01, 1e-9, why, options),
        ),
    )  # fmt: skip


@specimen
def positive_layers() -> Specimen:
    """Layers without negative weights, and a ReLU that is always on: intervals are exact."""
    layers = [nn.Linear(5, 7).double(), nn.ReLU(), nn.Linear(7, 3).double()]
    with torch.no_grad():
        for layer in (layers[0], layers[2]):
            for k, value in enumerate(layer.parameters()):
                value.copy_((torch.arange(value.numel()) % 5 + 1.0).reshape(value.shape) / (4 + k))
    x = torch.linspace(0.3, 0.7, 60, dtype=torch.float64).reshape(12, 5)
    subject = Subject(
        nn.Sequential(*layers), [(x, torch.arange(12) % 3)], bounds=(0, 1), name="positive layers"
    )

    def least(finding: Finding) -> float:
        return float(finding.arrays["samples"].min())

    name, why = "security/bound_tightness", "of non-negative weights |W_2| |W_1| = |W_2 W_1|"
    return Specimen(
        "positive layers", subject, (Truth(name, "tightness of every example", 1.0, 1e-9, why, read=least),)
    )


PLANTED, WEIGHTS = (9, 22, 37, 50), (4.0, 3.0, 2.0, 1.0)
"""Pixels of an 8 x 8 image that are read, and how strongly."""


class _Weighed(nn.Module):
    """The margin of class 0 is a weighted sum of four pixels less half of what they can give."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 2).double()
        with torch.no_grad():
            for parameter in self.head.parameters():
                parameter.zero_()
            self.head.weight[0, list(PLANTED)] = torch.tensor(WEIGHTS, dtype=torch.float64)
            self.head.bias[1] = sum(WEIGHTS) / 2

    def forward(self, x: Tensor) -> Tensor:
        """[n, 1, 8, 8] -> [n, 2]."""
        return self.head(x.flatten(1))


@specimen
def weighed_pixels() -> Specimen:
    """A linear network: freezing a pixel takes |w| r off the worst margin, and nothing where it is not read."""
    n = 32
    x = row_uniform(torch.arange(n * 64), 5).double().reshape(n, 64)
    x[:, list(PLANTED)] = 0.9  # the ball of 0.05 is not cut on the side that matters
    data = [(x.reshape(n, 1, 8, 8), torch.zeros(n, dtype=torch.long))]
    subject = Subject(_Weighed(), data, bounds=(0, 1), name="weighed pixels")

    def on_planted(finding: Finding) -> float:
        maps = finding.arrays["maps"].reshape(n, -1)
        return float(maps[:, list(PLANTED)].sum() / maps.sum())

    def error(finding: Finding) -> float:
        maps = finding.arrays["maps"].reshape(n, -1)[:, list(PLANTED)]
        return float(abs(maps - [0.05 * w for w in WEIGHTS]).max())

    truths = []
    for method in ("interval", "mixed", "linear"):
        options = {"examples": tuple(range(n)), "radius": 0.05, "method": method}
        why = f"the worst margin of a linear network is w x - r sum |w|, by {method} bounds too"
        truths += [
            Truth("explain/eva", "share of the map on what is read", 1.0, 1e-6, why, options, on_planted),
            Truth("explain/eva", "largest error of the map", 0.0, 1e-7, why, options, error),
        ]
    return Specimen("weighed pixels", subject, tuple(truths))
