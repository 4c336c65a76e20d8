"""Networks whose representations are written by hand: their ranks, similarities and collapse are sums."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from microtome.finding import Finding
from microtome.specimen import Specimen, Truth, specimen
from microtome.subject import Subject


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A linear layer with these numbers; draws none."""
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(torch.zeros(len(weight)) if bias is None else bias)
    return layer


def _batches(x: Tensor, y: Tensor, size: int = 50) -> list[tuple[Tensor, Tensor]]:
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@specimen
def planted_units() -> Specimen:
    """Twenty ReLU units, five silent and one without input; eight tanh units, two of them saturated."""
    weight, bias = torch.eye(20), torch.zeros(20)
    bias[:5] = -100.0
    weight[5], bias[5] = 0.0, 2.0
    gain = torch.tensor([50.0] * 2 + [0.1] * 6)[:, None]
    second = gain * torch.eye(20)[6:14]
    model = nn.Sequential(_linear(weight, bias), nn.ReLU(), _linear(second, second.sum(1) * -8.0), nn.Tanh())
    x = 8.0 + torch.where(_normal(300, 20) > 0, 1.0, -1.0)
    subject = Subject(model, _batches(x, torch.zeros(300, 8)), task="regression", name="planted units")
    name = "represent/activation_statistics"
    return Specimen(
        "planted units",
        subject,
        (
            Truth(name, "dead units", 5 / 20, 1e-12, "five biases lie below all inputs"),
            Truth(name, "constant units", 6 / 28, 1e-12, "five units are silent and one has weights 0"),
            Truth(
                name, "saturated units", 2 / 8, 1e-12, "two gains of 50 push inputs of +-1 against the bounds"
            ),
            Truth(name, "sparsity", 5 / 20, 1e-12, "the silent units hold all zeros"),
        ),
    )


@specimen
def planted_spectrum() -> Specimen:
    """Features whose covariance is diagonal by construction: rows are +-a_i along axis i."""
    variance = torch.tensor([0.5, 0.25, 0.125, 0.125, 0.0, 0.0], dtype=torch.float64)
    axes = torch.diag(variance.sqrt())[:4]
    x = torch.cat([axes, -axes]).repeat(25, 1)
    turn = torch.linalg.qr(_normal(6, 6).double())[0]
    model = nn.Sequential(_linear(turn), _linear(torch.eye(6))).double()
    subject = Subject(model, _batches(x, x), task="regression", name="planted spectrum")
    name, why = "represent/feature_rank", "variances 1/2, 1/4, 1/8, 1/8, 0, 0, then a rotation"
    p = variance[:4]
    return Specimen(
        "planted spectrum",
        subject,
        (
            Truth(name, "effective rank", math.exp(float(-(p * p.log()).sum())), 1e-9, why),
            Truth(name, "participation ratio", float(1 / p.square().sum()), 1e-9, why),
            Truth(name, "stable rank", 2.0, 1e-9, why),
            Truth(name, "numerical rank", 4.0, 0.0, why),
        ),
    )


@specimen
def planted_similarity() -> Specimen:
    """A layer, its rotated and scaled copy, and its first coordinate alone, on Gaussian inputs."""
    turn = torch.linalg.qr(_normal(2, 2, seed=1).double())[0] * 3
    model = nn.Sequential(_linear(turn), _linear(torch.tensor([[1.0, 0.0]]).double() @ turn.T / 9)).double()
    x = _normal(4000, 2, seed=2).double()
    first = nn.Sequential(_linear(torch.eye(2)), *model).double()
    subject = Subject(first, _batches(x, x[:, :1], 500), task="regression", name="planted similarity")
    name = "represent/linear_cka"
    return Specimen(
        "planted similarity",
        subject,
        (
            Truth(
                name, "0 and 1", 1.0, 1e-9, "a rotation and a scale, which CKA does not see", read=_cka(0, 1)
            ),
            # HSIC is |covariance|^2: 1 between, 2 and 1 within. The error is four standard errors of the
            # plug-in estimate from 4000 Gaussian rows, each about sqrt(1 / (2 n)).
            Truth(
                name,
                "0 and 2",
                1 / math.sqrt(2),
                0.045,
                "|I|^2 = 2 against 1 shared direction",
                read=_cka(0, 2),
            ),
        ),
    )


class _Cell:
    """Reads one cell of the CKA matrix."""

    def __init__(self, row: int, column: int) -> None:
        self.row, self.column = row, column

    def __call__(self, finding: Finding) -> float:
        return float(finding.arrays["cka"][self.row, self.column])


def _cka(row: int, column: int) -> _Cell:
    return _Cell(row, column)


@specimen
def planted_collapse() -> Specimen:
    """Four classes at the corners of a simplex, spread by 0.2 along every axis, read by their own means."""
    k, spread = 4, 0.2
    means = torch.eye(k, dtype=torch.float64) - 1 / k
    steps = spread * torch.cat([torch.eye(k), -torch.eye(k)]).double()
    x = (means[:, None] + steps).reshape(-1, k).repeat(8, 1)
    y = torch.arange(k).repeat_interleave(2 * k).repeat(8)
    model = nn.Sequential(_linear(torch.eye(k)), _linear(means)).double()
    subject = Subject(model, _batches(x, y), name="planted collapse")
    name, square = "represent/class_collapse", spread**2
    within = "S_W = s^2/4 I and S_B = (I - 1/4)/4, with s = 0.2"
    simplex = "means and classifier are one simplex"
    return Specimen(
        "planted collapse",
        subject,
        (
            Truth(name, "NC1", 0.75 * square, 1e-9, f"{within}: tr(S_W pinv(S_B)) / 4 = 3 s^2 / 4"),
            Truth(name, "CDNV", square / 2, 1e-9, "2 s^2 / (2 * 2), for means are sqrt(2) apart"),
            Truth(name, "NC2 equal length", 0.0, 1e-9, simplex),
            Truth(name, "NC2 simplex", 0.0, 1e-9, simplex),
            Truth(name, "NC3", 0.0, 1e-9, simplex),
            Truth(name, "NC4", 0.0, 0.0, "the largest logit is the nearest mean's"),
            Truth("represent/vci", "VCI", square / (1 + square), 1e-9, f"{within}: 1 - 1 / (1 + s^2)"),
        ),
    )


class _Product(nn.Module):
    """Its inputs, then their first two columns' product beside them, then that product as the answer."""

    def __init__(self, head: Tensor) -> None:
        super().__init__()
        self.first, self.second, self.head = _linear(torch.eye(4)), _linear(torch.eye(5)), _linear(head)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 4] -> [n, k]."""
        x = self.first(x)
        return self.head(self.second(torch.cat([x, x[:, :1] * x[:, 1:2]], dim=1)))


@specimen
def planted_parity() -> Specimen:
    """The class is the sign of a product that is itself a unit of the second layer."""
    x = torch.where(_normal(2000, 4, seed=3) > 0, 1.0, -1.0)
    y = (x[:, 0] * x[:, 1] > 0).long()
    head = torch.tensor([[0.0, 0, 0, 0, -1], [0, 0, 0, 0, 1]])
    subject = Subject(_Product(head), _batches(x, y, 256), name="planted parity")
    name, chance = "represent/linear_probes", 4 * 0.5 / math.sqrt(1000)
    return Specimen(
        "planted parity",
        subject,
        (
            Truth(name, "probe accuracy", 1.0, 1e-12, "the product is a unit of the layer"),
            Truth(
                name,
                "probe accuracy, random labels",
                0.5,
                chance,
                "chance, four standard errors of 1000 rows",
            ),
        ),
    )


@specimen
def planted_product() -> Specimen:
    """The value is a product of two Gaussian inputs: uncorrelated with either, a unit of the second layer."""
    x = _normal(2000, 4, seed=4)
    y = x[:, :1] * x[:, 1:2]
    head = torch.tensor([[0.0, 0, 0, 0, 1]])
    subject = Subject(_Product(head), _batches(x, y, 256), task="regression", name="planted product")
    name, options = "represent/linear_probes", {"ridge": 0.03}
    # Shrinking the one weight that matters by 1 / 1.03 leaves (0.03 / 1.03)^2 of the variance.
    kept = 1 - (0.03 / 1.03) ** 2
    return Specimen(
        "planted product",
        subject,
        (
            Truth(name, "probe R2", kept, 2e-4, "the product is a unit; the ridge takes its share", options),
            # Four weights fitted to noise on 1000 rows cost 4 / 1000 on average, four times that at most.
            Truth(
                name, "first layer", 0.0, 0.02, "a product is uncorrelated with its factors", options, _first
            ),
        ),
    )


def _first(finding: Finding) -> float:
    return float(finding.tables["layers"].rows[0][2] or 0)


@specimen
def planted_codes() -> Specimen:
    """Sixteen sign patterns, four examples each at different scales; two patterns belong to each class."""
    bits = torch.tensor([[i >> b & 1 for b in range(4)] for i in range(16)]).float() * 2 - 1
    code = torch.cat([bits, bits[:, 1:].repeat(1, 5)], dim=1)
    x = torch.cat([code * scale for scale in (0.5, 1.0, 2.0, 3.0)])
    y = torch.arange(16).repeat(4) // 2
    head = torch.zeros(8, code.shape[1])
    model = nn.Sequential(_linear(torch.eye(code.shape[1])), nn.ReLU(), _linear(head))
    subject = Subject(model, _batches(x, y), name="planted codes")
    name, options = "represent/neural_codes_hash_encoders", {"neighbours": 7}
    why = "its own pattern three times, then the four that differ in the one bit its class ignores"
    return Specimen(
        "planted codes",
        subject,
        (
            Truth(name, "redundancy", 48 / 64, 1e-12, "64 examples share 16 patterns", options=options),
            Truth(name, "nearest-code accuracy", 1.0, 1e-12, why, options=options),
            Truth(name, "purity", 1.0, 1e-12, why, options=options),
        ),
    )
