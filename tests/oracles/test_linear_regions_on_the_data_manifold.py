"""Densities of linear regions against dense sampling, and what must not change them."""

import pytest
import torch
from torch import nn

from microtome.instruments.theory.linear_regions_on_the_data_manifold import LinearRegions
from microtome.interpret import capture
from microtome.interpret.crossings import code
from microtome.interpret.patterns import pattern
from microtome.passes.run import run_instruments
from microtome.subject import Subject


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(3, 20), nn.ReLU(), nn.Linear(20, 20), nn.LeakyReLU(0.1), nn.Linear(20, 2)]
    return nn.Sequential(*layers).double()


def examine(model: nn.Module, x: torch.Tensor, y: torch.Tensor):
    return run_instruments(Subject(model, [(x, y)]), {"i": LinearRegions(examples=len(x))})["i"]


def test_boundaries_between_examples_are_those_that_sampling_finds():
    model, n = network(), 8
    x = 2 * torch.randn(n, 3, dtype=torch.float64)
    finding = examine(model, x, torch.arange(n) % 2)
    graph = capture(model, (x,))
    t = torch.linspace(0, 1, 100_001, dtype=torch.float64)[:, None]
    for i in range(n):
        partner = (i + 2) % n  # the next of its class
        codes = code(pattern(graph, (x[i] + (x[partner] - x[i]) * t,)), len(t))
        crossed = int((codes[1:] != codes[:-1]).any(1).sum())
        assert finding.arrays["boundaries"][i, 0] == crossed
        assert finding.arrays["lengths"][i, 0] == pytest.approx(float((x[partner] - x[i]).norm()))
    lengths = finding.arrays["lengths"]
    assert abs(lengths - lengths[:, :1]).max() < 1e-12  # all ways of an example are as long


def test_density_follows_the_scale_of_the_inputs_and_not_that_of_the_outputs():
    model, n = network(), 8
    x, y = 2 * torch.randn(n, 3, dtype=torch.float64), torch.arange(n) % 2
    plain = examine(model, x, y)
    with torch.no_grad():
        model[4].weight.mul_(7.0)
    assert examine(model, x, y).value == plain.value
    with torch.no_grad():
        model[0].weight.mul_(4.0)
    shrunk = examine(model, x / 4, y)
    assert shrunk.value == pytest.approx(4 * plain.value)
    assert shrunk.quantities["nearest boundary"].value == pytest.approx(
        plain.quantities["nearest boundary"].value / 4
    )


@pytest.mark.parametrize(("layer", "says"), [(nn.GELU(), "gelu"), (nn.Identity(), "linear")])
def test_networks_without_regions_are_refused(layer, says):
    model = nn.Sequential(nn.Linear(3, 4), layer, nn.Linear(4, 2))
    finding = examine(model, torch.randn(6, 3), torch.arange(6) % 2)
    assert finding.status == "refused"
    assert says in finding.reason
