"""Losses whose gradients, Hessians and surfaces are known in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from microtome.finding import Finding
from microtome.specimen import Specimen, Truth, specimen
from microtome.subject import Subject


def _orthonormal(rows: int, columns: int) -> Tensor:
    """[rows, columns] cosines; the columns are orthonormal."""
    place = torch.arange(rows, dtype=torch.float64) + 0.5
    wave = torch.arange(columns, dtype=torch.float64)
    table = torch.cos(math.pi / rows * place[:, None] * wave)
    return table / table.norm(dim=0)


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    model = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    with torch.no_grad():
        model.weight.copy_(weight)
        if bias is not None:
            model.bias.copy_(bias)
    return model


@specimen
def planted_spectrum() -> Specimen:
    """Linear regression whose inputs are scaled so that 2 X^T X / n has a chosen spectrum."""
    n, p = 128, 64
    planted = torch.cat([torch.tensor([20.0, 10.0, 5.0]), torch.linspace(1.5, 0.5, p - 3)]).double()
    turned = _orthonormal(p, p)  # so that no eigenvector lies along a coordinate
    x = (_orthonormal(n, p) * (n * planted / 2).sqrt()) @ turned.T
    subject = Subject(_linear(torch.zeros(1, p).double()), [(x, torch.zeros(n, 1))], name="planted spectrum")
    name, why = "dynamics/hessian_spectrum", "the Hessian of the mean squared error is 2 X^T X / n"
    bulk = float(planted[3:].square().sum())

    def third(finding: Finding) -> float:
        return float(finding.arrays["eigenvalues"][2])

    return Specimen(
        "planted spectrum", subject,
        (
            Truth(name, "largest eigenvalue", 20.0, 1e-6, why),
            Truth(name, "third eigenvalue", 5.0, 1e-3, why, read=third),
            Truth(name, "trace", float(planted.sum()), 4 * math.sqrt(2 / 8 * bulk), why + "; 4 sigma"),
            Truth(name, "negative share", 0.0, 1e-12, "a convex loss"),
        ),
    )  # fmt: skip


@specimen
def flat_softmax() -> Specimen:
    """Softmax regression at zero weights: (I - 11^T / k) / k, Kronecker the second moment of the inputs."""
    n, k, scales = 48, 4, torch.tensor([3.0, 2.0, 1.0, 0.5, 0.25]).double()
    x = _orthonormal(n, 5) * (n * scales).sqrt()
    labels = torch.arange(n) % k
    subject = Subject(
        _linear(torch.zeros(k, 5).double()), [(x, labels)], task="classification", name="flat softmax"
    )
    name, why = (
        "dynamics/hessian_spectrum",
        "eigenvalues are those of E[x x^T] / k, each k - 1 times, and zeros",
    )

    def spread(finding: Finding) -> float:
        return float(finding.arrays["eigenvalues"][:3] @ torch.tensor([1.0, 10.0, 100.0]).numpy())

    return Specimen(
        "flat softmax", subject,
        (
            Truth(name, "largest eigenvalue", 3 / k, 1e-8, why),
            Truth(name, "three largest, weighted", (3 + 20 + 100) / k, 1e-6, why, read=spread),
            Truth(name, "least eigenvalue", 0.0, 1e-8, why),
        ),
    )  # fmt: skip


@specimen
def planted_noise() -> Specimen:
    """Gradients (2, +-2 s) of a linear regression: the mean is one coordinate, the noise the other."""
    n, spread = 72, 1.5
    sign = 1.0 - 2.0 * (torch.arange(n) // 3 % 2)  # as many of either sign
    x = torch.stack([torch.ones(n), spread * sign], dim=1)
    subject = Subject(_linear(torch.zeros(1, 2)), [(x, -torch.ones(n, 1))], name="planted noise")
    mean, single = 4.0, 4.0 + 4.0 * spread**2
    noise, signal = n * (single - mean) / (n - 1), (n * mean - single) / (n - 1)
    name, why = "dynamics/gradient_noise", "g = (2, 0) and |g_i|^2 = 4 + 4 s^2 in every row"
    return Specimen(
        "planted noise", subject,
        (
            Truth(name, "noise scale", noise / signal, 1e-5, why),
            Truth(name, "gradient norm", 2.0, 1e-6, why),
            Truth(name, "example gradient norm (rms)", math.sqrt(single), 1e-6, why),
        ),
    )  # fmt: skip


@specimen
def round_valley() -> Specimen:
    """Linear regression with white inputs: every filter-normalised direction sees the same parabola."""
    n, outputs, width = 96, 3, 6
    x = _orthonormal(n, width + 1)[:, 1:] * math.sqrt(n)  # without the constant column: the mean is zero
    weight = _orthonormal(width, outputs).T * torch.tensor([[1.0], [2.0], [3.0]]).double()
    bias = torch.tensor([5.0, -5.0, 1.0]).double()
    subject = Subject(_linear(weight, bias), [(x, (x @ weight.T + bias).float())], name="round valley")
    square = float(weight.square().sum()) / outputs
    name, why = "dynamics/loss_landscape", "L(a) = a^2 |W|^2 / outputs along any such direction"
    return Specimen(
        "round valley", subject,
        (
            Truth(name, "sharpness", 0.25 * square, 1e-5, why),
            Truth(name, "curvature", 2 * square, 1e-4, why),
            Truth(name, "non-convexity", 0.0, 1e-12, why),
        ),
    )  # fmt: skip
