"""Networks whose cost can be counted by hand, and whose needless weights are known."""

from __future__ import annotations

import torch
from torch import nn

from microtome.finding import Finding
from microtome.specimen import Specimen, Truth, specimen
from microtome.subject import Subject


@specimen
def counted_costs() -> Specimen:
    """A convolution, an activation and a linear layer, small enough to count."""
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 5))
    x = torch.linspace(0, 1, 40 * 32).reshape(40, 2, 4, 4)
    subject = Subject(model, [(x, torch.arange(40) % 5)], name="counted costs")
    name = "compress/cost"
    convolution, linear = 2 * 3 * 2 * 9 * 16, 2 * 48 * 5
    parameters = 3 * 2 * 9 + 3 + 48 * 5 + 5
    why = "2 operations a multiply-add, counted by hand"

    def first(finding: Finding) -> float:
        return float(finding.tables["layers"].rows[0][3] or 0)

    return Specimen(
        "counted costs",
        subject,
        (
            Truth(name, "operations", convolution + linear, 1e-9, why),
            Truth(name, "operations of the convolution", convolution, 1e-9, why, read=first),
            Truth(name, "parameters", parameters, 0.0, "counted by hand"),
            Truth(name, "weights", 4 * parameters, 0.0, "4 bytes each"),
            Truth(name, "activations", 4 * (48 + 48 + 5), 0.0, "4 bytes each"),
        ),
    )


@specimen
def needless_weights() -> Specimen:
    """A 10 x 10 layer that needs its ten large diagonal weights and none of the ninety small ones."""
    k = 10
    weight = torch.full((k, k), 0.01) + torch.diag(1.0 + 0.1 * torch.arange(k))
    model = nn.Linear(k, k, bias=False)
    with torch.no_grad():
        model.weight.copy_(weight)
    labels = torch.arange(200) % k
    subject = Subject(model, [(torch.eye(k)[labels], labels)], name="needless weights")
    name = "compress/magnitude_pruning"
    options = {"control": 0.9}

    def beyond(finding: Finding) -> float:
        return float(finding.tables["tensors"].rows[0][-2] or 0)

    return Specimen(
        "needless weights",
        subject,
        (
            Truth(name, "prunable together", 0.9, 1e-12, "90 of 100 weights do nothing", options=options),
            Truth(name, "accuracy lost at 0.9", 0.0, 1e-12, "90 of 100 weights do nothing", options=options),
            # Of ten classes three keep a weight, and class 0 is what is answered when all logits are equal.
            Truth(
                name, "accuracy lost at 0.97", 0.6, 1e-9, "3 classes are left, and 0", options, read=beyond
            ),
        ),
    )
