"""CKA against the estimator written out pair by pair, and its promises."""

import pytest
import torch
from represent_subjects import activations, batches, close, data, network, read, subject
from torch import Tensor, nn

from microtome.folds.hsic import UnbiasedHSIC
from microtome.instruments.represent.linear_cka import LinearCKA
from microtome.signals.gram import _block_grams
from microtome.subject import Subject


def hsic(x: Tensor, y: Tensor) -> float:
    """Song et al. 2012, equation 5."""
    k, g = (a.flatten(1).double() @ a.flatten(1).double().T for a in (x, y))
    k, g = k - torch.diag(k.diag()), g - torch.diag(g.diag())
    n, one = len(k), torch.ones(len(k), dtype=torch.float64)
    ends = (one @ k @ one) * (one @ g @ one) / ((n - 1) * (n - 2))
    return float((torch.trace(k @ g) + ends - 2 / (n - 2) * (one @ k @ g @ one)) / (n * (n - 3)))


def slow(values: list[Tensor], block: int) -> Tensor:
    total = torch.zeros(len(values), len(values), dtype=torch.float64)
    for start in range(0, len(values[0]), block):
        part = [v[start : start + block] for v in values]
        if len(part[0]) >= 4:
            weight = len(part[0]) - 3
            total += weight * torch.tensor([[hsic(a, b) for b in part] for a in part], dtype=torch.float64)
    return total / (total.diagonal()[:, None] * total.diagonal()).sqrt()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("block", [8, 16])
def test_against_the_formula(dtype, tolerance, block):
    finding = read(subject(dtype), LinearCKA(block=block))
    truth = slow(list(activations(dtype).values()), block)
    torch.testing.assert_close(torch.from_numpy(finding.arrays["cka"]), truth, atol=tolerance, rtol=0)


@pytest.mark.parametrize("rows", [1, 3, 7, 16, 64, 101])
def test_slices_do_not_matter(rows):
    close(read(subject(), LinearCKA(block=16)), read(subject(size=7), LinearCKA(block=16), rows), 1e-9)


def test_blocks_merge_in_any_order():
    x = torch.randn(50, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fold = UnbiasedHSIC(signals=(), block=8)
    cuts = [(20, 23), (0, 3), (23, 50), (3, 20)]
    parts = [
        fold.lift(
            _block_grams(x[a:b], torch.arange(a, b), 8), _block_grams(x[a:b].square(), torch.arange(a, b), 8)
        )
        for a, b in cuts
    ]
    left = fold.merge(fold.merge(fold.merge(*parts[:2]), parts[2]), parts[3])
    right = fold.merge(parts[0], fold.merge(parts[1], fold.merge(parts[2], parts[3])))
    for a, b in zip(fold.result(left)[:2], fold.result(right)[:2], strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
    assert fold.result(left).dropped == 2  # 50 rows: the last block holds two
    assert len(left["ids"]) == 2


class Twin(nn.Module):
    """One layer, its rotated, scaled and shifted copy, and one that does not vary."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.a, self.b, self.still = nn.Linear(6, 6, bias=False), nn.Linear(6, 6), nn.Linear(6, 6)
        with torch.no_grad():
            self.a.weight.copy_(torch.eye(6))
            self.b.weight.copy_(
                3 * torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))[0]
            )
            self.b.bias.fill_(shift)
            self.still.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) + 0 * self.still(x)


@pytest.mark.parametrize("shift", [0.0, 1e3])
def test_rotation_scale_and_shift_are_not_seen_and_dead_layers_are_left_empty(shift):
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    finding = read(Subject(Twin(shift), batches(x, torch.randn(40, 6)), task="regression"), LinearCKA())
    assert finding.value == pytest.approx(1, abs=1e-4)
    assert any("still" in c for c in finding.caveats)


def test_two_networks():
    one, (x, y) = subject(), data()
    same = read(one, LinearCKA(other=Subject(network(), batches(x, y))))
    assert same.value == pytest.approx(1, abs=1e-9)
    assert same.headline == "same layers" and same.options["other"] == "Net"
    with torch.random.fork_rng():
        torch.manual_seed(5)
        other = type(network())().double()
    assert read(one, LinearCKA(other=Subject(other, batches(x, y)))).value < 0.999


def test_few_rows_refuse():
    x, y = data(n=3)
    assert read(Subject(network(), batches(x, y)), LinearCKA()).status == "refused"
    x, y = data(n=5)
    assert read(Subject(network(), batches(x, y)), LinearCKA()).status == "measured"
