"""Randomised data keep what they should keep; the constructed network fits anything."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from microtome.data.digits import tensors
from microtome.data.label_noise import corrupted_labels
from microtome.data.randomised import RANDOMISATIONS, randomised
from microtome.errors import UsageError
from microtome.nn.interpolating import Interpolating
from microtome.nn.random_shift import RandomShift
from microtome.population import Population, Recipe, every, train

X, Y = tensors("test")


@pytest.mark.parametrize("kind", RANDOMISATIONS)
def test_what_a_randomisation_keeps(kind):
    x, y = randomised(X, Y, kind, 10, seed=3)
    assert x.shape == X.shape and x.dtype == X.dtype and y.dtype == Y.dtype
    again = randomised(X[:50], Y[:50], kind, 10, seed=3)
    pixels = x.flatten(1).sort(1).values
    same = X.flatten(1).sort(1).values
    assert torch.equal(y, Y) == (kind != "random labels")
    assert torch.equal(x, X) == (kind in ("true labels", "random labels"))
    assert torch.equal(pixels, same) == (kind != "Gaussian pixels")
    if kind == "shuffled pixels":  # one permutation for all, also of other pictures
        assert torch.equal(again[0], x[:50])
        assert torch.allclose(
            x.flatten(1).mean(0).sort().values, X.flatten(1).mean(0).sort().values, atol=1e-6
        )
    if kind == "random pixels":
        assert x.flatten(1).mean(0).std() < 0.3 * X.flatten(1).mean(0).std()
    if kind == "Gaussian pixels":
        assert (float(x.mean()), float(x.std())) == pytest.approx((float(X.mean()), float(X.std())), abs=0.02)


def test_labels_are_corrupted_as_often_as_asked():
    y = torch.zeros(5000, dtype=torch.int64)
    assert float((corrupted_labels(y, 0.5, 10) != 0).double().mean()) == pytest.approx(0.45, abs=0.03)
    assert torch.equal(corrupted_labels(y, 0.0, 10), y)
    with pytest.raises(UsageError, match=r"MT496 .*did you mean 'random labels'"):
        randomised(X, Y, "random label", 10)


def test_any_answers_are_interpolated_with_2n_plus_d_weights():
    x, y = X[:200], torch.randn(200, generator=torch.Generator().manual_seed(1))
    network = Interpolating(x, y)
    assert network.count() == 2 * 200 + 64
    assert float((network(x) - y).abs().max()) < 1e-6
    # By hand: three points on a line and a direction of 1 leave max(z - b_j, 0) triangular.
    line = torch.tensor([[0.0], [1.0], [3.0]])
    small = Interpolating(line, torch.tensor([2.0, -1.0, 5.0]))
    matrix = torch.relu(line.double() * small.direction - small.thresholds)
    assert torch.allclose(matrix @ small.weights, torch.tensor([2.0, -1.0, 5.0], dtype=torch.float64))


def test_an_example_with_two_answers_is_refused():
    with pytest.raises(UsageError, match="MT497 one example has two answers"):
        Interpolating(torch.zeros(2, 3), torch.tensor([0.0, 1.0]))
    assert Interpolating(torch.zeros(2, 3), torch.tensor([1.0, 1.0])).count() == 2 + 3


def test_pictures_are_moved_in_training_mode_only():
    layer = RandomShift(1)
    picture = torch.arange(16.0).view(1, 1, 4, 4).expand(500, 1, 4, 4)
    assert torch.equal(layer.eval()(picture), picture)
    moved = layer.train()(picture)
    kinds, counts = moved.flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 9 and counts.min() > 20  # each of 3 x 3 moves
    place = torch.arange(4)
    expected = {
        tuple(picture[0, 0][(place + i).clamp(0, 3)][:, (place + j).clamp(0, 3)].flatten().tolist())
        for i in (-1, 0, 1)
        for j in (-1, 0, 1)
    }
    assert {tuple(k.tolist()) for k in kinds} == expected


def test_members_of_a_population_move_their_pictures_independently():
    build = lambda: nn.Sequential(RandomShift(1), nn.Flatten(), nn.Linear(64, 10))  # noqa: E731
    population = Population([build()] * 2, seeds=[0, 0])
    with torch.no_grad():
        population.parameters["2.weight"][1] = population.parameters["2.weight"][0]
        population.parameters["2.bias"][1] = population.parameters["2.bias"][0]
    losses = []
    done = train(
        population,
        X,
        Y,
        Recipe(rate=0.0, steps=3),
        observers=[(lambda m: losses.append(m.loss.clone()), every(1))],
    )
    assert done.route == "traced" and len(torch.stack(losses[1:]).unique()) == 6
