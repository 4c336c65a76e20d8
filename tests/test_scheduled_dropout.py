"""As nn.Dropout in law; the rate changes with step and member without another trace."""

import pytest
import torch
from torch import nn

from microtome.errors import UsageError
from microtome.nn import scheduled_dropout as s
from microtome.population import Population, Recipe, every, train


def test_zeroes_the_share_and_keeps_the_mean():
    torch.manual_seed(0)
    layer, x = s.ScheduledDropout(0.3), torch.ones(40_000)
    out = layer(x)
    assert out.eq(0).double().mean().item() == pytest.approx(0.3, abs=0.01)
    assert out.mean().item() == pytest.approx(1, abs=0.02)
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert torch.equal(layer.eval()(x), x)
    assert "rate" in layer.state_dict()
    with pytest.raises(UsageError, match="MT466"):
        s.ScheduledDropout(1.0)


def test_schedules():
    early, late = s.early(0.4, 10), s.late(0.4, 10)
    assert [early(t) for t in (0, 5, 10, 99)] == pytest.approx([0.4, 0.2, 0, 0])
    assert [s.early(0.4, 10, linear=False)(t) for t in (0, 9, 10)] == [0.4, 0.4, 0]
    assert [late(t) for t in (0, 9, 10, 99)] == [0, 0, 0.4, 0.4]


class Gate(nn.Module):
    """Its gradient is 1 where the unit was kept."""

    def __init__(self):
        super().__init__()
        self.w, self.drop = nn.Parameter(torch.zeros(200)), s.ScheduledDropout()

    def forward(self, x):
        return self.drop(x + self.w)


def test_rates_differ_by_member_and_step():
    torch.manual_seed(0)
    population, x = Population.of(Gate, [0, 1, 2]), torch.ones(5, 200)
    seen = []

    def watch(moment):
        seen.append(moment.population.vectors())

    final = torch.tensor([0.0, 0.5, 0.9])
    schedule = s.DropoutSchedule(lambda step: final if step >= 2 else 0.0)
    found = train(
        population,
        x,
        x,
        Recipe(rate=1.0, steps=4, loss=lambda out, _: out.sum(1).mean()),
        observers=[(schedule, every(1)), (watch, every(1))],
    )
    assert found.route == "traced"
    assert torch.allclose(seen[2], torch.full((3, 200), -2.0))  # no dropout yet: all gradients 1
    moved = (seen[3] - seen[2]).abs()
    assert torch.allclose(moved[0], torch.ones(200))
    assert moved[1].std() > 0.1 and moved[2].std() > moved[1].std()
    assert moved.mean(1).tolist() == pytest.approx([1, 1, 1], abs=0.25)
    assert not torch.equal(seen[4] - seen[3], seen[3] - seen[2])  # drawn anew
    assert population.buffers["drop.rate"].tolist() == pytest.approx(final.tolist())


def test_a_population_without_it_is_refused():
    with pytest.raises(UsageError, match="MT466"):
        s.set_rates(Population.of(lambda: nn.Linear(2, 2), [0]), 0.1)
