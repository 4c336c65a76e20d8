"""The nearest other answer against a general optimiser, and what it may not do."""

import pytest
import torch
from reliability_subjects import data, network, read
from scipy.optimize import minimize
from torch import nn

from microtome.instruments.explain.nearest_counterfactual import NearestCounterfactual
from microtome.passes import run_instruments
from microtome.signals.counterfactual import _nearest_of_plane
from microtome.subject import Subject


def nearest(weight, bias, x, bounds):
    """Over all other classes, by sequential quadratic programming from the input itself."""
    own = int((weight @ x + bias).argmax())
    found = []
    for other in range(len(weight)):
        if other != own:
            slope, gap = (weight[own] - weight[other]).numpy(), float(bias[own] - bias[other])
            rule = {"type": "ineq", "fun": lambda u, s=slope, g=gap: -(s @ u + g)}
            got = minimize(lambda u: ((u - x.numpy()) ** 2).sum(), x.numpy(), bounds=bounds, constraints=rule)
            if got.success:
                found.append(float(got.fun) ** 0.5)
    return min(found)


@pytest.mark.parametrize("bounds", [None, (-1.0, 1.0)])
def test_a_linear_network_against_an_optimiser(bounds):
    torch.manual_seed(0)
    model = nn.Linear(5, 3).double()
    x = torch.rand(12, 5, dtype=torch.float64) * 2 - 1
    finding = read(
        NearestCounterfactual(examples=12),
        model,
        [(x, torch.arange(12) % 3)],
        bounds=bounds,
        task="classification",
    )
    assert finding.arrays["rows"].tolist() == list(range(12))
    with torch.no_grad():
        weight, bias = model.weight.clone(), model.bias.clone()
        for i, length in enumerate(finding.arrays["samples"]):
            truth = nearest(weight, bias, x[i], [bounds] * 5 if bounds else None)
            assert truth * (1 - 1e-4) <= length <= truth * (1 + 1e-3) + 1e-9
        moved = torch.from_numpy(finding.arrays["changed"]).double()
        torch.testing.assert_close(
            (moved - x).norm(dim=1), torch.from_numpy(finding.arrays["samples"]), rtol=1e-4, atol=1e-5
        )
        if bounds:
            assert float(moved.min()) >= bounds[0] - 1e-6 and float(moved.max()) <= bounds[1] + 1e-6


def test_the_change_changes_the_answer_and_shorter_than_random_ones():
    model, batches = network(torch.float64), data(torch.float64)
    x = torch.cat([b[0] for b in batches])
    finding = read(NearestCounterfactual(examples=40, real=200), model, batches)
    a = finding.arrays
    rows, length = torch.from_numpy(a["rows"]), torch.from_numpy(a["samples"])
    assert len(rows) >= 40 and finding.quantities["changed at all"].value == 1.0
    with torch.no_grad():
        own = model(x).argmax(1)
        assert (torch.from_numpy(a["answers then"]) != own[rows]).all()
        generator = torch.Generator().manual_seed(0)
        for i, r in zip(rows.tolist(), length.tolist(), strict=True):
            around = torch.nn.functional.normalize(
                torch.randn(200, 6, generator=generator, dtype=torch.float64), dim=1
            )
            assert (model(x[i] + 0.98 * r * around).argmax(1) == own[i]).all(), (
                "something nearer is answered otherwise"
            )
        far = torch.cdist(x[rows], x)
        far[own[rows][:, None] == own[None]] = torch.inf
        torch.testing.assert_close(torch.from_numpy(a["distance to a real one"]), far.amin(1))
        assert a["nearest real"].tolist() == far.argmin(1).tolist()
        assert (length <= far.amin(1) + 1e-9).all()


def test_points_of_a_plane_within_a_box():
    generator = torch.Generator().manual_seed(1)
    base, slope = (
        torch.rand(30, 4, generator=generator, dtype=torch.float64),
        torch.randn(30, 4, generator=generator).double(),
    )
    ahead = torch.rand(30, generator=generator, dtype=torch.float64) * 0.3
    low, high = torch.zeros_like(base), torch.ones_like(base)
    found = _nearest_of_plane(base, base, slope, ahead, low, high)
    for i in range(30):
        s, x, g = slope[i].numpy(), base[i].numpy(), float(ahead[i])
        rule = {"type": "eq", "fun": lambda u, s=s, x=x, g=g: g + s @ (u - x)}
        got = minimize(lambda u, x=x: ((u - x) ** 2).sum(), x, bounds=[(0, 1)] * 4, constraints=rule)
        if got.success:
            assert float((found[i] - base[i]).norm()) == pytest.approx(float(got.fun) ** 0.5, abs=1e-4)


class Flat(nn.Module):
    def forward(self, x):
        return torch.stack([x[:, 0] * 0 + 1, x[:, 0] * 0], 1)


def test_a_network_without_slopes_is_refused():
    subject = Subject(Flat(), [(torch.rand(8, 3), torch.arange(8) % 2)], task="classification")
    found = run_instruments(subject, {"i": NearestCounterfactual()})["i"]
    assert found.status == "refused" and "slopes may be zero" in found.reason
