"""Networks through which signals travel as a formula says."""

from __future__ import annotations

import math

import torch
from torch import nn

from microtome.finding import Finding
from microtome.interpret.mean_field import fixed_point, propagated
from microtome.nn.critical import critical_
from microtome.specimen import Specimen, Truth, specimen
from microtome.subject import Subject

EDGE = "theory/edge_of_chaos_initialisation"


def _inputs(n: int, width: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, width, dtype=torch.float64, generator=generator), torch.arange(n) % 3)]


@specimen
def turning_layers() -> Specimen:
    """Five linear layers, each a rotation times 0.8: squares shrink by 0.64 a layer and angles stay."""
    generator, gain, width, depth = torch.Generator().manual_seed(0), 0.8, 24, 5
    layers = [nn.Linear(width, width, bias=False, dtype=torch.float64) for _ in range(depth)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight, gain, generator=generator)
    data = _inputs(36, width, 1)
    subject = Subject(nn.Sequential(*layers), data, task="classification", name="turning layers")
    x = data[0][0]
    size = float(x.square().mean()) * gain ** (2 * depth)
    unit = x / x.norm(dim=1, keepdim=True)
    cosine = float((unit @ unit.T).triu(1).sum()) / (len(x) * (len(x) - 1) / 2)
    every, why = {"examples": len(x)}, "a rotation times 0.8"
    return Specimen(
        "turning layers", subject,
        (
            Truth(EDGE, "chi", gain**2, 1e-12, why),
            Truth(EDGE, "depth scale", -1 / math.log(gain**2), 1e-10, why),
            Truth(EDGE, "gradient factor of all stages", gain ** (2 * (depth - 1)), 1e-12, why),
            Truth(EDGE, "scale of weights that leads to the edge", 1 / gain, 1e-12, why),
            Truth(EDGE, "variance at the last layer", size, 1e-12, why, every),
            Truth(EDGE, "variance at the last layer, of that predicted", 1.0, 1e-12, why, every),
            Truth(EDGE, "cosine of two inputs at the last layer", cosine, 1e-12, "rotations keep angles", every),
            Truth(EDGE, "cosine at the last layer, predicted", cosine, 1e-12, "rotations keep angles", every),
        ),
    )  # fmt: skip


def _deep(width: int, depth: int, function: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(width, width, dtype=torch.float64)]
    for _ in range(depth - 1):
        layers += [function(), nn.Linear(width, width, dtype=torch.float64)]
    return nn.Sequential(*layers)


@specimen
def critical_rectifiers() -> Specimen:
    """Six ReLU layers drawn at the edge of chaos; chi is 1 up to the mean square of 65536 weights a layer."""
    width, depth = 256, 6
    model = _deep(width, depth, nn.ReLU)
    critical_(model, "relu", generator=torch.Generator().manual_seed(3))
    subject = Subject(model, _inputs(32, width, 4), task="classification", name="critical rectifiers")
    spread = 5 * math.sqrt(2 / (width**2 * (depth - 1)))
    why = "chi is 1 at the edge; 5 standard errors of the weights' mean square"
    return Specimen(
        "critical rectifiers", subject,
        (
            Truth(EDGE, "chi", 1.0, spread, why),
        ),
    )  # fmt: skip


@specimen
def chaotic_tanh() -> Specimen:
    """Ten tanh layers of sigma_w 2 and sigma_b 0.3: the variance has come to rest, the cosine of two inputs nearly."""
    width, depth, w, b = 640, 10, 2.0, 0.3
    model, generator = _deep(width, depth, nn.Tanh), torch.Generator().manual_seed(5)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0, w / math.sqrt(width), generator=generator)
            nn.init.normal_(layer.bias, 0, b, generator=generator)
    subject = Subject(model, _inputs(24, width, 6), task="classification", name="chaotic tanh")
    rest = fixed_point("tanh", w, b)
    first = w**2 + b**2  # inputs are N(0, 1) and nearly orthogonal
    cosine = float(propagated("tanh", (first, first), b**2 / first, w, b, depth - 1)[1][-1])

    def last_chi(finding: Finding) -> float:
        return float(finding.tables["layers"].rows[-1][5] or 0)

    # sigma_w^2 is known to sqrt(2 / width^2), sigma_b^2 to sqrt(2 / width); d ln chi / d ln q is below 1 in size.
    tolerance = 5 * (math.sqrt(2) / width + math.sqrt(2 / width) * b**2 / rest.variance) * rest.chi
    # The mean square of 640 units at 16 inputs, whose squares have the correlation c^2; earlier layers add a third.
    moved = 5 * math.sqrt(1.33 * 2 / width * (1 / 16 + rest.correlation**2)) * rest.variance
    # A cosine of 640 units errs by 1 / sqrt(640), twice that by earlier layers; pairs of 16 inputs are 16 or more.
    turned = 5 * 2 / math.sqrt(width * 16)
    return Specimen(
        "chaotic tanh", subject,
        (
            Truth(EDGE, "chi of the last stage", rest.chi, tolerance, "where the variance rests", read=last_chi),
            Truth(EDGE, "variance at the last layer", rest.variance, moved, "the fixed point of its map"),
            Truth(EDGE, "cosine of two inputs at the last layer", cosine, turned, "nine steps of its map"),
        ),
    )  # fmt: skip
