"""Networks whose linear regions, equivalent tree and Lipschitz constant are counted by hand."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from microtome.specimen import Specimen, Truth, specimen
from microtome.subject import Subject

REGIONS = "theory/linear_regions_on_the_data_manifold"
TREE = "explain/neural_networks_are_decision_trees"
SPEED = "theory/lipschitz"


def relu_net(first: list[list[float]], bias: list[float], last: list[list[float]]) -> nn.Sequential:
    """One ReLU layer with these weights, in float64; the head has no bias."""
    units, head = nn.Linear(len(first[0]), len(first)), nn.Linear(len(first), len(last), bias=False)
    with torch.no_grad():
        units.weight.copy_(torch.tensor(first))
        units.bias.copy_(torch.tensor(bias))
        head.weight.copy_(torch.tensor(last))
    return nn.Sequential(units, nn.ReLU(), head).double()


@specimen
def hat() -> Specimen:
    """2 relu(x) - 4 relu(x - 1): slopes 0, 2 and -2, so three regions with boundaries at 0 and 1.

    Examples lie at -0.5 and 1.5 in turns, so that each way to the next of its class crosses both.
    """
    n = 40
    x = torch.where(torch.arange(n) % 2 == 0, -0.5, 1.5).double()[:, None]
    y = (torch.arange(n) // 2) % 2
    subject = Subject(relu_net([[1], [1]], [0, -1], [[2, -4]]), [(x, y)], task="classification", name="hat")
    every = {"examples": n}
    both = "two boundaries on a way of length 2"
    return Specimen(
        "hat", subject,
        (
            Truth(REGIONS, "density to the same class", 1.0, 1e-12, both, every),
            Truth(REGIONS, "regions on a way", 3.0, 1e-12, "slopes 0, 2 and -2", every),
            Truth(REGIONS, "nearest boundary", 0.5, 1e-12, "-0.5 from 0 and 1.5 from 1", every),
            Truth(TREE, "difference", 0.0, 1e-12, "the tree and the network are one function", every),
            Truth(TREE, "leaves reached", 2.0, 0.0, "no example lies between 0 and 1", every),
            Truth(TREE, "questions", 2.0, 0.0, "one for each ReLU", every),
            Truth(TREE, "feasible leaves", 3.0, 0.0, "x > 1 and x <= 0 exclude each other", every),
            Truth(SPEED, "largest slope found", 2.0, 1e-12, "at 1.5 the slope is -2", every),
            Truth(SPEED, "upper bound", math.sqrt(40), 1e-12, "|(2, -4)| |(1, 1)|", every),
            Truth(SPEED, "upper bound", 6.0, 1e-12, "2 + 4 in the norm infinity", {**every, "norm": "inf"}),
            Truth(SPEED, "upper bound", 8.0, 1e-12, "4 times 2 in the norm 1", {**every, "norm": "1"}),
            Truth(TREE, "open questions on a path", 5 / 3, 1e-12, "(1 + 2 + 2) / 3", every),
        ),
    )  # fmt: skip


class _Folded(nn.Module):
    """| |x| - 1 |, built of maxima instead of ReLUs, beside 0."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """[n, 1] -> [n, 2]."""
        folded = torch.maximum(x, -x) - self.shift
        return torch.cat([folded.abs(), folded * 0], 1)


@specimen
def twice_folded() -> Specimen:
    """| |x| - 1 | has boundaries at -1, 0 and 1; examples at -2 and 2 in turns."""
    n = 24
    x = torch.where(torch.arange(n) % 2 == 0, -2.0, 2.0).double()[:, None]
    subject = Subject(_Folded(), [(x, (torch.arange(n) // 2) % 2)], name="twice folded")
    every = {"examples": n}
    return Specimen(
        "twice folded", subject,
        (
            Truth(REGIONS, "density to the same class", 0.75, 1e-12, "three boundaries on a way of length 4", every),
            Truth(REGIONS, "nearest boundary", 1.0, 1e-12, "from 2 to 1", every),
            Truth(TREE, "feasible leaves", 4.0, 0.0, "four pieces", every),
            Truth(TREE, "difference", 0.0, 1e-12, "the tree and the network are one function", every),
        ),
    )  # fmt: skip


@specimen
def two_linear_layers() -> Specimen:
    """Linear layers diag(3, 1) and diag(1, 2) in a row: together diag(3, 2), and not 3 times 2."""
    n = 16
    layers = [nn.Linear(2, 2, bias=False).double() for _ in range(2)]
    with torch.no_grad():
        for layer, diagonal in zip(layers, ([3.0, 1.0], [1.0, 2.0]), strict=True):
            layer.weight.copy_(torch.tensor(diagonal).diag())
    x = torch.linspace(-1, 1, 2 * n, dtype=torch.float64).reshape(n, 2)
    subject = Subject(nn.Sequential(*layers), [(x, torch.arange(n) % 2)], name="two linear layers")
    why = "the spectral norm of diag(3, 2)"
    return Specimen(
        "two linear layers", subject,
        (
            Truth(SPEED, "upper bound", 3.0, 1e-12, why),
            Truth(SPEED, "largest slope found", 3.0, 1e-12, why),
            Truth(SPEED, "bound, of the slope found", 1.0, 1e-12, "a linear network has one slope"),
            Truth(SPEED, "upper bound near an example", 3.0, 1e-12, why),
        ),
    )  # fmt: skip
