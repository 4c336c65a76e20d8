"""Networks whose programs can be read by hand: what an entry sees, what an operation moves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from microtome.finding import Finding
from microtome.specimen import Specimen, Truth, specimen
from microtome.subject import Subject


@specimen
def known_fields() -> Specimen:
    """A convolution of 3, a pool of 2 and a convolution of 5 with stride 2 and padding 1 on 24 pixels."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 3, (5, 1), (2, 1), (1, 0)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    x = torch.linspace(0, 1, 30 * 576).reshape(30, 1, 24, 24)
    subject = Subject(model, [(x, torch.arange(30) % 3)], name="known fields")
    name = "architect/receptive_field"

    def start(finding: Finding) -> float:
        return float(finding.tables["layers"].rows[-1][5] or 0)

    return Specimen(
        "known fields",
        subject,
        (
            Truth(name, "receptive field", 3 + 1 + 4 * 2, 0.0, "3, then + 1 x 1, then + 4 x 2 pixels"),
            Truth(name, "width", 3 + 1, 0.0, "the last kernel has width 1"),
            Truth(name, "stride", 2 * 2, 0.0, "the pool's 2 times the convolution's 2"),
            Truth(name, "first pixel", -1 - 1 * 2, 0.0, "paddings of 1 at strides 1 and 2", read=start),
            Truth(name, "share of the image", 12 * 4 / 576, 1e-12, "12 x 4 of 24 x 24 pixels"),
        ),
    )


@specimen
def counted_program() -> Specimen:
    """A linear layer and a ReLU, whose 32 rows can be counted by hand."""
    model = nn.Sequential(nn.Linear(8, 6, bias=False), nn.ReLU())
    x = torch.linspace(0, 1, 40 * 8).reshape(40, 8)
    subject = Subject(model, [(x, torch.arange(40) % 6)], name="counted program")
    name, n = "architect/operations", 32
    products = 2 * 8 * 6
    moved = 4 * (8 + 6 + 8 * 6 / n) + 4 * (6 + 6)
    why = "counted by hand, the weights once a call"
    return Specimen(
        "counted program",
        subject,
        (
            Truth(name, "operations", products, 1e-9, "2 a multiply-add"),
            Truth(name, "other operations", 6, 1e-9, "one an entry of the ReLU"),
            Truth(name, "bytes", moved, 1e-9, why),
            Truth(name, "energy", 1e-6 * (48 * 4.6 + 6 * 0.9 + moved * 162.5), 1e-12, why),
            Truth(name, "kinds", 2, 0.0, "linear and relu"),
        ),
    )


class _Residual(nn.Module):
    """A branch of two maps around which the input goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 6] -> [n, 4]."""
        return self.head(x + self.second(torch.tanh(self.first(x))))


@specimen
def known_wiring() -> Specimen:
    """One residual branch: map, tanh, map, sum, map."""
    x = torch.linspace(-1, 1, 40 * 6).reshape(40, 6)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        subject = Subject(_Residual(), [(x, torch.arange(40) % 4)], name="known wiring")
    name = "architect/wiring"
    why = "written down in its forward"
    return Specimen(
        "known wiring",
        subject,
        (
            Truth(name, "operations", 5, 0.0, why),
            Truth(name, "depth", 5, 0.0, "the branch is the longest way"),
            Truth(name, "merges", 1, 0.0, "the sum, once in its forward"),
            Truth(name, "learned maps", 3, 0.0, why),
            Truth(name, "parameters", 7 * 8 + 9 * 6 + 7 * 4, 0.0, "weights and biases"),
        ),
    )
