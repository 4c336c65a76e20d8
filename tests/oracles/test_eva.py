"""EVA against interval arithmetic patch by patch, and bounds on the worst margin against attacks."""

import numpy as np
import pytest
import torch
from torch import nn

from microtome.instruments.explain.eva import EVA
from microtome.interpret import capture
from microtome.interpret.interval import Interval, interval_bounds
from microtome.laws.subjects import images, language, tokens
from microtome.passes.run import run_instruments
from microtome.subject import Subject


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 4), nn.Tanh()]
    return nn.Sequential(*layers).double()


def pictures(size: int):
    torch.manual_seed(1)
    x = torch.rand(12, 2, 6, 6, dtype=torch.float64)
    return [(x[i : i + size], torch.arange(12)[i : i + size] % 4) for i in range(0, 12, size)]


def worst(model, graph, x, radius) -> torch.Tensor:
    """Bound on max_j logit_j - logit_c of one example, by the outputs' ranges (a tanh comes last)."""
    out = interval_bounds(graph, Interval.around(x[None], radius, 0, 1))
    answer = int(model(x[None]).argmax())
    return max(out.upper[0, j] - out.lower[0, answer] for j in range(4) if j != answer)


@pytest.mark.parametrize("size", [5, 12])
@pytest.mark.parametrize("grid", [3, 6, 9])
def test_agrees_with_freezing_patch_by_patch(size, grid):
    model = convolutional()
    subject = Subject(model, pictures(size), bounds=(0, 1))
    finding = run_instruments(
        subject, {"i": EVA(examples=(0, 7), radius=0.05, grid=grid, method="interval")}
    )["i"]
    x = torch.cat([b[0] for b in pictures(12)])
    graph = capture(model, (x,))
    side = min(grid, 6)
    cell = 6 // side
    with torch.no_grad():
        for row, i in enumerate((0, 7)):
            full = worst(model, graph, x[i], torch.full((1, 2, 6, 6), 0.05, dtype=x.dtype))
            for down in range(side):
                for across in range(side):
                    radius = torch.full((1, 2, 6, 6), 0.05, dtype=x.dtype)
                    patch = (slice(down * cell, (down + 1) * cell), slice(across * cell, (across + 1) * cell))
                    radius[..., patch[0], patch[1]] = 0
                    drop = float(full - worst(model, graph, x[i], radius))
                    seen = finding.arrays["maps"][row][patch]
                    assert seen == pytest.approx(np.full_like(seen, drop), abs=1e-6)


def test_tighter_bounds_shrink_the_drops_of_a_linear_network_to_its_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Linear(12, 3)).double()
    x = 0.4 + 0.2 * torch.rand(16, 6, dtype=torch.float64)
    with torch.no_grad():
        y = model(x).argmax(1)
    subject = Subject(model, [(x, y)], bounds=(0, 1))
    whole = model[1].weight.detach() @ model[0].weight.detach()
    loose, exact = (
        run_instruments(subject, {"i": EVA(examples=(0, 3), radius=0.001, method=m)})["i"].arrays["maps"]
        for m in ("interval", "linear")
    )
    for row, i in enumerate((0, 3)):
        margins = (model(x[i])[y[i]] - model(x[i])).detach()
        margins[y[i]] = torch.inf
        runner = int(margins.argmin())  # so small a ball leaves the runner-up where it is
        weights = (whole[y[i]] - whole[runner]).abs().numpy()
        assert exact[row] == pytest.approx(0.001 * weights, rel=1e-4)
    assert (loose >= exact - 1e-9).all()


@pytest.mark.parametrize("make", [images, tokens, language])
def test_other_inputs(make):
    finding = run_instruments(make(), {"i": EVA(examples=(0, 5, 6), radius=0.01)})["i"]
    assert finding.status in ("measured", "refused"), finding.reason
    if finding.status == "measured":
        assert (finding.arrays["maps"] >= 0).all()
        assert finding.arrays["maps"].max() > 0


def test_refuses_unknown_methods():
    assert "method" in run_instruments(images(), {"i": EVA(method="guess")})["i"].reason
