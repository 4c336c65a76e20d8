"""The index against its definition, its invariance and its identity with least squares."""

import pytest
import torch
from represent_subjects import activations, batches, close, data, network, read, subject
from torch import nn

from microtome.instruments.represent.vci import VariabilityCollapseIndex
from microtome.subject import Subject


def slow(h, y):
    """Xu & Liu 2023: 1 - tr(pinv(total) between) / rank(between)."""
    h = h.double()
    mean = h.mean(0)
    total = (h - mean).T @ (h - mean) / len(h)
    between = torch.zeros_like(total)
    for c in y:
        gap = h[y == c].mean(0) - mean
        between += torch.outer(gap, gap) / len(h)
    rank = torch.linalg.matrix_rank(between, rtol=1e-8)
    return float(1 - torch.trace(torch.linalg.pinv(total, rtol=1e-10) @ between) / rank)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_the_definition(dtype):
    finding, (_, y) = read(subject(dtype), VariabilityCollapseIndex()), data(dtype)
    rows = {row[0]: row[3] for row in finding.tables["layers"].rows}
    for name, value in activations(dtype).items():
        h = value.mean((2, 3)) if value.dim() == 4 else value
        assert rows[name] == pytest.approx(slow(h, y), abs=1e-5 if dtype == torch.float32 else 1e-9)


def test_slices_do_not_matter():
    close(read(subject(), VariabilityCollapseIndex()), read(subject(size=7), VariabilityCollapseIndex(), 7))


class Mapped(nn.Module):
    def __init__(self, matrix):
        super().__init__()
        self.map = nn.Linear(5, len(matrix), bias=True).double()
        self.head = nn.Linear(len(matrix), 3).double()
        with torch.no_grad():
            self.map.weight.copy_(matrix)

    def forward(self, x):
        return self.head(self.map(x))


def test_invariant_under_invertible_maps_and_padding():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(90) % 3
    x = torch.randn(90, 5, generator=generator, dtype=torch.float64) + y[:, None] * torch.tensor(
        [1.0, 0, 0.5, 0, 0], dtype=torch.float64
    )
    scales = torch.diag(torch.tensor([0.1, 0.3, 1.0, 3.0, 10.0], dtype=torch.float64))
    random = torch.randn(5, 5, generator=generator, dtype=torch.float64) @ scales
    wider = torch.cat([random, random[:2]])  # not of full rank: the pseudo-inverse must see through it
    values = [
        read(Subject(Mapped(m), batches(x, y)), VariabilityCollapseIndex()).value
        for m in (torch.eye(5), random, wider)
    ]
    assert values[1] == pytest.approx(values[0], abs=1e-8)
    assert values[2] == pytest.approx(values[0], abs=1e-8)


def test_least_squares_loss_follows_from_it():
    """Balanced classes: the best linear map to centred one-hot labels leaves (k - 1) / k * VCI."""
    finding, (_, y) = read(subject(n=100), VariabilityCollapseIndex()), data(n=100)
    h = activations()["tanh"][:100]
    h = torch.cat([h, torch.ones(100, 1).double()], dim=1)
    onehot = nn.functional.one_hot(y).double()
    left = (h @ torch.linalg.lstsq(h, onehot).solution - onehot).square().sum() / 100
    assert float(left) == pytest.approx(3 / 4 * finding.value, rel=1e-9)


def test_too_few_examples_one_class_and_equal_means():
    x, y = data(n=7)
    few = read(Subject(network(), batches(x, y)), VariabilityCollapseIndex())
    assert few.status == "refused" or few.caveats
    x, y = data()
    assert "one class" in read(Subject(network(), batches(x, 0 * y)), VariabilityCollapseIndex()).reason
