"""Networks of one ReLU layer, small enough that relevance and every changed gradient can be written down."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from microtome.finding import Finding
from microtome.folds import row_uniform
from microtome.specimen import Specimen, Truth, specimen
from microtome.subject import Subject

BLOCK = 4
TEMPERATURE = 0.7


class _ThreeUnits(nn.Module):
    """Units that sum block A, sum block B, and sum block S with a minus; S never fires. Logits A - B + S, B - A + S."""

    def __init__(self) -> None:
        super().__init__()
        self.units, self.head = nn.Linear(16, 3, bias=False), nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            self.units.weight.zero_()
            for unit, sign in enumerate((1.0, 1.0, -1.0)):
                self.units.weight[unit, BLOCK * unit : BLOCK * (unit + 1)] = sign
            self.head.weight.copy_(torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, 1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        """[n, 16] -> [n, 2]."""
        return self.head(torch.relu(self.units(x)))


def _on_a(finding: Finding) -> float:
    """Share of the map on the block of the class."""
    maps = abs(finding.arrays["maps"])
    return float(maps[:, :BLOCK].sum() / maps.sum())


def _wrong(per_entry: list[float]) -> Callable[[Finding], float]:
    """Largest difference of the maps from the one that every example should have."""

    def read(finding: Finding) -> float:
        return float(abs(finding.arrays["maps"] - torch.tensor(per_entry).numpy()).max())

    return read


@specimen
def three_units() -> Specimen:
    """Unit A is at 2, unit B at 1, unit S at -2, in every example; four inputs are not read."""
    n = 32
    x = torch.cat(
        [
            torch.full((n, BLOCK), 0.5),
            torch.full((n, BLOCK), 0.25),
            torch.full((n, BLOCK), 0.5),
            row_uniform(torch.arange(n * BLOCK), 5).float().reshape(n, BLOCK),
        ],
        dim=1,
    )
    subject = Subject(_ThreeUnits(), [(x, torch.zeros(n, dtype=torch.long))], name="three units")
    a, b, s = (1 / (1 + math.exp(-v / TEMPERATURE)) for v in (2.0, 1.0, -2.0))
    everyone = {"examples": tuple(range(n))}
    warm = {**everyone, "temperature": TEMPERATURE}
    cold = {**everyone, "temperature": 0.0}
    plain = {**everyone, "composite": "zero"}
    exact = [0.5] * 4 + [-0.25] * 4 + [0.0] * 8
    shares = [0.25] * 4 + [0.0] * 12
    lrp, dtd, pull = (
        "explain/layerwise_relevance",
        "explain/deep_taylor_decomposition",
        "explain/excitation_pullbacks",
    )
    on_a, entries = "share of the map on A", "largest error of the map"
    return Specimen(
        "three units", subject,
        (
            Truth(lrp, entries, 0.0, 1e-6, "with LRP-0 and no bias it is x times the gradient", plain, _wrong(exact)),
            Truth(lrp, "conservation error", 0.0, 1e-6, "no bias absorbs anything", plain),
            Truth(dtd, entries, 0.0, 1e-5, "A alone gets it, in four by w^2", everyone, _wrong(shares)),
            Truth(dtd, "conservation error", 0.0, 1e-5, "every unit with relevance is fed positively", everyone),
            Truth("explain/guided_backprop", on_a, 1.0, 1e-6, "B's signal is negative, S is off", everyone, _on_a),
            Truth("explain/deconvnet", on_a, 0.5, 1e-6, "S lets back though it is off", everyone, _on_a),
            Truth(pull, on_a, a / (a + b + s), 1e-5, "the three gates at T = 0.7", warm, _on_a),
            Truth(pull, "likeness to the gradient", 1.0, 1e-6, "at T = 0 it is the gradient", cold),
            Truth("explain/fullgrad", on_a, 2 / 3, 1e-6, "|x ds/dx|: 0.5 four times, 0.25 four times", everyone, _on_a),
            Truth("explain/fullgrad", "completeness error", 0.0, 1e-6, "there is no bias", everyone),
        ),
    )  # fmt: skip


class _Biased(nn.Module):
    """Logit 0 is the sum of six inputs plus 1."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[1.0] * 6, [0.0] * 6]))
            self.head.bias.copy_(torch.tensor([1.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        """[n, 6] -> [n, 2]."""
        return self.head(x)


@specimen
def a_quarter_is_bias() -> Specimen:
    """Inputs sum to 3 and the bias is 1, so that the bias holds a quarter of the score, whatever is handed back."""
    n = 24
    x = 0.1 + row_uniform(torch.arange(n * 6), 6).float().reshape(n, 6)
    x = 3 * x / x.sum(1, keepdim=True)
    subject = Subject(_Biased(), [(x, torch.zeros(n, dtype=torch.long))], name="a quarter is bias")
    everyone = {"examples": tuple(range(n))}
    why = "the bias 1 of the score 4"
    lrp, full = "explain/layerwise_relevance", "explain/fullgrad"
    return Specimen(
        "a quarter is bias", subject,
        (
            Truth(lrp, "conservation error", 0.25, 1e-5, why, {**everyone, "composite": "zero"}),
            Truth(lrp, "conservation error", 0.25, 1e-5, why, everyone),
            Truth(full, "part of the biases", 0.25, 1e-6, why, everyone),
            Truth(full, "completeness error", 0.0, 1e-6, "input and bias are all there is", everyone),
            Truth("explain/deep_taylor_decomposition", "conservation error", 0.0, 1e-5, "w^2 has no bias", everyone),
        ),
    )  # fmt: skip
