"""Modular tables, the networks that learn them, and when their curves cross a level."""

from __future__ import annotations

import math

import pytest
import torch

from microtome.data.modular import modular, modular_pairs, modular_table
from microtome.errors import UsageError
from microtome.nn.modular_mlp import ModularMLP
from microtome.nn.modular_transformer import ModularTransformer
from microtome.population import Population, Recipe, Recorder, every, train
from microtome.population.grokking import reached, scores


@pytest.mark.parametrize(
    ("operation", "answer"),
    [("x+y", (3 + 5) % 7), ("x-y", (3 - 5) % 7), ("x*y", 15 % 7), ("x^2+xy+y^2", (9 + 15 + 25) % 7)],
)
def test_tables_answer_as_arithmetic_does(operation, answer):
    row = 7 * 3 + 5
    assert modular_pairs(7)[row].tolist() == [3, 5]
    assert int(modular_table(7, operation)[row]) == answer


def test_a_split_is_whole_and_its_answers_are_the_tables():
    data = modular(7, 0.4, ["x+y", "x+y", "random"], [0, 1, 0])
    assert data.x.shape == (3, 20, 2) and data.trained.sum(1).tolist() == [20] * 3
    for x, y, trained, answers in zip(data.x, data.y, data.trained, data.answers, strict=True):
        rows = 7 * x[:, 0] + x[:, 1]
        assert trained[rows].all() and len(rows.unique()) == 20
        assert torch.equal(answers[rows], y)
    assert torch.equal(data.trained[0], data.trained[2])  # one seed, one split
    assert not torch.equal(data.trained[0], data.trained[1])


def test_what_is_no_table_is_refused():
    with pytest.raises(UsageError, match="MT481"):
        modular_table(7, "x+z")
    with pytest.raises(UsageError, match="MT482"):
        modular(7, 0.0, ["x+y"], [0])
    with pytest.raises(UsageError, match="MT480"):
        modular_pairs(1)


def test_transformer_is_attention_as_it_is_written():
    """Against torch's own attention over the three tokens of every pair."""
    torch.manual_seed(0)
    p, width, heads = 5, 8, 2
    net = ModularTransformer(p, width, heads, 16).double()
    x = modular_pairs(p)
    tokens = torch.cat([x, torch.full((len(x), 1), p)], 1)
    stream = net.embed[tokens] + net.position
    q, k, v = (
        (stream @ m).view(len(x), 3, heads, -1).transpose(1, 2) for m in (net.query, net.key, net.value)
    )
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    stream = stream + mixed.transpose(1, 2).flatten(2) @ net.out
    stream = stream + net.down(torch.relu(net.up(stream)))
    assert torch.allclose(net(x), (stream @ net.unembed)[:, -1], atol=1e-12)


def test_mlp_by_hand():
    net = ModularMLP(5, 3).double()
    units = (net.u[2] + net.v[4]) ** 2
    assert torch.allclose(net(torch.tensor([[2, 4]]))[0], net.w @ units)


def test_populations_of_both_are_trained_as_one_traced_program():
    data = modular(5, 0.6, ["x+y"] * 2, [0, 1])
    for build in (lambda: ModularMLP(5, 8), lambda: ModularTransformer(5, 8, 2, 8)):
        population = Population.of(build, [0, 1])
        recorder = Recorder(measures={"s": scores(data.pairs, data.answers, data.trained)})
        found = train(
            population,
            data.x,
            data.y,
            Recipe(optimizer="adamw", rate=3e-2, steps=100),
            private=(True, True),
            observers=[(recorder, every(50))],
        )
        assert found.route == "traced"
        curve = recorder.recording.value("s")
        assert (curve[-1, :, 0] == 1).all()  # fits what it learns from
        member = population.member(1)(data.pairs).argmax(-1) == data.answers[1]
        assert curve[-1, 1, 1] == member[~data.trained[1]].double().mean()


def test_first_crossing_and_never():
    curve = torch.tensor([[0.1, 0.1], [0.9, 0.2], [0.5, 0.3]])
    assert reached([0, 10, 20], curve, 0.8).tolist() == [10.0, math.inf]
    assert reached([0, 10, 20], curve, 0.15, below=True).tolist() == [0.0, 0.0]
