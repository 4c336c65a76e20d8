"""Tightness against products of absolute weights, and against outputs sampled within the ball."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from microtome.instruments.security.bound_tightness import BoundTightness
from microtome.passes.run import run_instruments
from microtome.subject import Subject


def read(model, x, **options):
    labels = torch.arange(len(x)) % 3
    batches = list(zip(x.split(5), labels.split(5), strict=True))
    return run_instruments(Subject(model, batches, bounds=(0, 1)), {"i": BoundTightness(**options)})["i"]


def linear_network(depth: int, width: int) -> nn.Sequential:
    torch.manual_seed(depth * width)
    sizes = [7, *[width] * (depth - 1), 4]
    return nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))).double()


@pytest.mark.parametrize(("depth", "width"), [(1, 0), (2, 16), (3, 9), (5, 20)])
def test_deep_linear_networks_by_their_matrices(depth, width):
    model = linear_network(depth, width)
    torch.manual_seed(0)
    x = 0.3 + 0.4 * torch.rand(12, 7, dtype=torch.float64)
    finding = read(model, x, radius=0.02, examples=12)
    whole, loose = torch.eye(7, dtype=torch.float64), torch.eye(7, dtype=torch.float64)
    for layer in model:
        whole, loose = layer.weight.detach() @ whole, layer.weight.detach().abs() @ loose
    truth = float((whole.abs().sum(1) / loose.sum(1)).mean())
    assert finding.value == pytest.approx(truth, rel=1e-9)
    assert finding.quantities["tightness, at most"].value == pytest.approx(truth, rel=1e-6)
    assert finding.quantities["width reached"].value == pytest.approx(float(0.04 * whole.abs().sum(1).mean()))


def test_sampled_outputs_lie_between_the_ends():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 3)
    ).double()
    x, radius = torch.rand(6, 4, dtype=torch.float64), 0.1
    finding = read(model, x, radius=radius, examples=6)
    from microtome.interpret import capture
    from microtome.interpret.interval import Interval, interval_bounds

    box = Interval.around(x, radius, 0, 1)
    wide = interval_bounds(capture(model, (x,)), box).width.detach()
    moved = box.lower + torch.rand(20000, 6, 4, dtype=torch.float64) * box.width
    with torch.no_grad():
        out = model(moved)
    sampled = ((out.amax(0) - out.amin(0)) / wide).mean(1).numpy()
    assert (sampled <= finding.arrays["at_most"] + 1e-9).all()
    assert (finding.arrays["samples"] <= finding.arrays["at_most"]).all()
    # Corners along the gradient reach what 20 000 random points do, nearly.
    assert (finding.arrays["samples"] >= 0.8 * sampled).all()
    assert (finding.arrays["at_most"] < 1).all()


def test_linear_bounds_can_be_left_out_and_outputs_chosen():
    model = linear_network(2, 8)
    x = 0.3 + 0.4 * torch.rand(12, 7, dtype=torch.float64)
    short = read(model, x, linear=False, outputs=2)
    assert "tightness, at most" not in short.quantities
    assert np.isfinite(short.value)
    full = read(model, x, linear=True, outputs=2)
    assert full.value == pytest.approx(short.value)
    assert "above 0" in read(model, x, radius=0.0).reason
