"""Against the dense Hessian of each member; ranks and dead units that are planted."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import hessian

from microtome.learn.flat import flat
from microtome.population import Population
from microtome.population.curvature import dead_share, effective_rank, extreme_curvatures, sharpness


def test_curvatures_are_the_ends_of_the_spectrum():
    torch.manual_seed(0)
    x, y = torch.randn(20, 3), torch.randint(0, 3, (2, 20))
    population = Population.of(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(), nn.Linear(4, 3)), [0, 1]
    )
    low, high = extreme_curvatures(population, x, y, private=(False, True), steps=20)
    found = sharpness(population, x, y, private=(False, True), steps=20)
    for i in range(2):
        vector, call = flat(population.member(i).eval())
        values = torch.linalg.eigvalsh(hessian(lambda v, c=call, t=y[i]: F.cross_entropy(c(v, x), t))(vector))
        assert low[i].item() == pytest.approx(values[0].item(), rel=1e-2, abs=1e-4)
        assert high[i].item() == pytest.approx(values[-1].item(), rel=1e-3)
        assert found[i].item() == pytest.approx(values.abs().max().item(), rel=1e-3)
    assert population.template.training


def test_rank_and_dead_units():
    torch.manual_seed(0)
    q = torch.linalg.qr(torch.randn(10, 4))[0]
    flatly = torch.stack([q, q * torch.tensor([1.0, 0, 0, 0])])
    assert effective_rank(flatly).tolist() == pytest.approx([4, 1], rel=1e-5)
    units = torch.relu(torch.randn(2, 30, 8))
    units[1, :, :2] = 0
    assert dead_share(units).tolist() == [0, 0.25]


def test_a_quadratic_has_its_own_curvatures():
    class Bowl(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return x * self.w

    scale = torch.tensor([[3.0, -2.0, 0.5]])
    low, high = extreme_curvatures(
        Population.of(Bowl, [0, 1]), torch.ones(1, 3), scale, loss=lambda out, s: (s * out.square()).sum() / 2
    )
    assert low.tolist() == pytest.approx([-2, -2], rel=1e-5) and high.tolist() == pytest.approx(
        [3, 3], rel=1e-5
    )
