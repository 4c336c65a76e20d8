"""One source of randomness at a time, and denormal numbers that no longer arise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from microtome.errors import UsageError
from microtome.population import Recipe, every, train
from microtome.population.denormals import flushing
from microtome.population.sensitivity import varied

X = torch.rand(40, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 3


def build():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("by", ["all", "weights", "order", "rounding", "nothing"])
def test_members_differ_by_what_was_asked(by):
    population = varied(build, [1, 2, 3], by, base=7)
    start = population.vectors()
    apart = (start - start[0]).abs()
    moved = (apart[1:] != 0).sum(1)
    if by in ("all", "weights"):
        assert (moved > 20).all()
    elif by == "rounding":  # each member one weight, so two places differ, by rounding
        assert (moved == 2).all() and apart.max() < 1e-6
    else:
        assert (moved == 0).all()
    train(population, X, Y, Recipe(rate=0.1, epochs=2, batch_size=8))
    end = population.vectors()
    assert (torch.equal(end[0], end[1]), torch.equal(end[0], end[2])) == ((by == "nothing",) * 2)


def test_an_unknown_source():
    with pytest.raises(UsageError, match=r"MT492 .*did you mean 'order'"):
        varied(build, [0], "ordre")


def test_denormal_numbers_do_not_arise_and_the_processor_is_left_as_found():
    before = flushing()
    x = X.clone()
    x[:, 0] = 1.0
    population = varied(build, [0, 1], "all")
    population.parameters["0.bias"].fill_(
        -9
    )  # dead units: no gradient after the first step is planted by hand
    planted = {"velocity/0": torch.full((2, 8, 5), 1e-37), "velocity/1": torch.full((2, 8), 1e-37)}
    planted |= {"velocity/2": torch.zeros(2, 3, 8), "velocity/3": torch.zeros(2, 3), "steps": torch.tensor(1)}
    seen = {}
    recipe = Recipe(rate=0.1, steps=40, options={"momentum": 0.9})
    train(
        population,
        x,
        Y,
        recipe,
        state=planted,
        start=1,
        observers=[(lambda m: seen.update(m.state()), every(40))],
    )
    velocity = seen["velocity/0"]
    assert flushing() == before
    assert not velocity.any()  # 1e-37 * 0.9^39 = 1.6e-39 would be a denormal number
