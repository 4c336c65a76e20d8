"""Networks whose cost can be counted by hand, and whose needless weights are known."""

from __future__ import annotations

from collections.abc import Callable

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


@specimen
def weights_on_a_grid() -> Specimen:
    """Answers that rest on weights of 1, 2 and 4 where the largest is 7: whole numbers that four bits hold exactly.

    q = 7, 3, 1 at 4, 3, 2 bits: a weight v becomes 0 where v q / 7 < 1/2, and with it the answer its class 1.
    """
    first, last = nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.eye(4))  # 0 and 1: two bits are enough
        last.weight.copy_(torch.tensor([[7.0, 0.0, 0.0, 0.0], [7.0, 1.0, 2.0, 4.0]]))
    kinds = torch.arange(200) % 4
    subject = Subject(
        nn.Sequential(first, nn.ReLU(), last),
        [(torch.eye(4)[kinds], (kinds > 0).long())],
        name="weights on a grid",
    )
    name = "compress/quantization_sensitivity"

    def cell(tensor: str, column: str) -> Callable[[Finding], float]:
        def read(finding: Finding) -> float:
            table = finding.tables["tensors"]
            row = next(r for r in table.rows if r[0] == tensor)
            return float(row[table.columns.index(column)] or 0)

        return read

    return Specimen(
        "weights on a grid",
        subject,
        (
            Truth(name, "fewest bits together", 4, 0.0, "whole numbers up to 7"),
            Truth(name, "accuracy lost at 4 bits", 0.0, 0.0, "whole numbers up to 7"),
            Truth(name, "accuracy lost at 2 bits", 0.5, 1e-12, "1 and 2 become 0"),
            Truth(name, "lost at 3", 0.25, 1e-12, "1 becomes 0", read=cell("2.weight", "at 3 bits")),
            Truth(name, "lost at 8", 0.0, 0.0, "4 of 127 steps", read=cell("2.weight", "at 8 bits")),
            Truth(
                name, "bits of zeros and ones", 2, 0.0, "0 and 1 alone", read=cell("0.weight", "fewest bits")
            ),
            Truth(name, "fewest bits each alone", (16 * 2 + 8 * 4) / 24, 1e-12, "16 weights at 2, 8 at 4"),
        ),
    )
