"""The surface against weights moved by hand, and its invariance to rescaled filters."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from microtome.instruments.dynamics.loss_landscape import LossLandscape
from microtome.passes.run import run_instruments
from microtome.signals.directions import filter_normalised
from microtome.subject import Subject


def network(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)


def data(dtype: torch.dtype, size: int):
    torch.manual_seed(1)
    x, y = torch.randn(50, 5, dtype=dtype), torch.randint(0, 3, (50,))
    return [(x[i : i + size], y[i : i + size]) for i in range(0, 50, size)]


def read(model, batches, **options):
    return run_instruments(Subject(model, batches), {"l": LossLandscape(**options)})["l"]


def moved_loss(model, batches, directions, steps):
    moved = copy.deepcopy(model)
    vector = nn.utils.parameters_to_vector(moved.parameters())
    for direction, step in zip(directions, steps, strict=True):
        vector = vector + step * direction
    nn.utils.vector_to_parameters(vector, moved.parameters())
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    with torch.no_grad():
        return float(nn.functional.cross_entropy(moved(x), y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_moved_weights(dtype):
    model, batches = network(dtype), data(dtype, 16)
    directions = [filter_normalised(Subject(model, batches), i) for i in range(2)]
    for direction in directions:
        parts = direction.split([p.numel() for p in model.parameters()])
        for part, p in zip(parts, model.parameters(), strict=True):
            if p.dim() == 1:
                assert not part.any()
            else:
                assert part.reshape(p.shape).norm(dim=1).numpy() == pytest.approx(
                    p.detach().norm(dim=1).numpy(), rel=1e-5
                )
    finding = read(model, batches, points=5, surface=3)
    steps = finding.arrays["steps"]
    for i in range(2):
        truth = [moved_loss(model, batches, directions[i : i + 1], [a]) for a in steps]
        assert finding.arrays["lines"][i] == pytest.approx(truth, rel=1e-5)
    rise = [
        moved_loss(model, batches, [d], [a]) - moved_loss(model, batches, [d], [0])
        for d in directions
        for a in (0.5, -0.5)
    ]
    assert finding.value == pytest.approx(np.mean(rise), rel=1e-5)
    assert finding.arrays["surface"].shape == (3, 3)


def test_surface_agrees_with_moved_weights():
    model, batches = network(torch.float64), data(torch.float64, 50)
    directions = [filter_normalised(Subject(model, batches), i) for i in range(2)]
    finding = read(model, batches, points=5, surface=3, examples=200)  # a quarter is all 50
    truth = [[moved_loss(model, batches, directions, [a, b]) for b in (-1, 0, 1)] for a in (-1, 0, 1)]
    assert finding.arrays["surface"] == pytest.approx(np.array(truth), rel=1e-6)


def test_rescaled_filters_give_the_same_surface():
    model = network(torch.float64)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight *= 7.0
        other[0].bias *= 7.0
        other[2].weight /= 7.0
    a, b = (read(m, data(torch.float64, 50), surface=0) for m in (model, other))
    assert a.arrays["lines"] == pytest.approx(b.arrays["lines"], rel=1e-6)


def test_batch_size_does_not_matter():
    readings = [read(network(torch.float64), data(torch.float64, size)) for size in (7, 64)]
    for name, quantity in readings[0].quantities.items():
        assert readings[1].quantities[name].value == pytest.approx(quantity.value, rel=1e-6)


def test_edges():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return x * self.scale

    batches = [(torch.randn(8, 3), torch.arange(8) % 3)]
    assert "no filter" in read(Scale(), batches).reason
    assert read(network(torch.float32), data(torch.float32, 50), radius=2.0).status == "refused"
    single = read(network(torch.float32), [(torch.randn(1, 5), torch.tensor([0]))])
    assert single.status == "measured"
