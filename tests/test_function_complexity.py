"""Waves have their frequency, polynomials their order, strings their phrases; noise is at the top of all three."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from microtome.errors import UsageError
from microtome.nn.function_mlp import ACTIVATIONS, FunctionMLP
from microtome.nn.sequence_transformer import SequenceTransformer
from microtome.population import Population
from microtome.population import function_complexity as c

R = 32
X, Y = c.grid(R).T.view(2, R, R)


def test_a_wave_has_its_frequency():
    waves = torch.stack([torch.cos(math.pi * (X + 1) * f) for f in (0.5, 1, 3, 8)] + [X * 0 + 2.0])
    assert c.mean_frequency(waves).tolist() == pytest.approx([0.5, 1, 3, 8, 0], abs=1e-4)
    both = 1 + 5 * torch.cos(math.pi * (X + 1) * 3) * torch.cos(math.pi * (Y + 1) * 4)
    assert c.mean_frequency(both[None]).item() == pytest.approx(5, abs=1e-4)


def test_a_polynomial_has_its_order():
    cubic = 5 * X**3 / 2 - 3 * X / 2
    found = c.mean_order(torch.stack([X, X * Y, cubic, 7 + 2 * Y, X * 0]))
    assert found.tolist() == pytest.approx([1, 2, 3, 1, 0], abs=0.02)


def test_phrases_of_known_strings():
    assert c.phrases(b"0001101001000101") == 6  # 0.001.10.100.1000.101, the example of Lempel and Ziv
    assert c.phrases(b"0" * 50) == 2 and c.phrases(b"01" * 30) == 3 and c.phrases(b"") == 0


def test_noise_is_more_complex_than_a_plane():
    torch.manual_seed(0)
    noise = torch.randn(3, R, R)
    plane = (X + 0.5 * Y)[None]
    for measure in (c.mean_frequency, c.mean_order, c.compressibility):
        assert measure(noise).min() > 3 * measure(plane).max()
        assert torch.allclose(measure(noise), measure(5 * noise - 3), rtol=1e-6)
    assert c.compressibility(noise).mean().item() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_networks_as_functions(activation):
    points = c.grid(8)
    population = Population.of(
        lambda: FunctionMLP(activation=activation, residual=True, norm=True, width=8), [0, 1]
    )
    values = population.predict(points)
    assert values.shape == (2, 64) and values.std() > 0
    one = population.member(0)
    h = one.activation(torch.nn.functional.layer_norm(one.hidden[0](points), (8,)))
    for layer in list(one.hidden)[1:]:
        h = h + one.activation(torch.nn.functional.layer_norm(layer(h), (8,)))
    assert torch.allclose(values[0], one.last(h)[:, 0], atol=1e-6)
    with pytest.raises(UsageError, match="MT470"):
        FunctionMLP(activation="sine")


def test_phrases_a_token_of_sequences():
    constant, pair = torch.zeros(40, dtype=torch.long), torch.tensor([3, 200] * 20)
    noise = torch.randint(256, (5, 40), generator=torch.Generator().manual_seed(0))
    found = c.sequence_complexity(torch.stack([constant, pair])[None])
    assert found.shape == (1, 2) and (found * 40).tolist() == [[2, 3]]
    assert c.sequence_complexity(noise).min() > 0.7


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_a_decoder_says_nothing_of_later_tokens_and_is_torchs_own(activation):
    torch.manual_seed(0)
    model = SequenceTransformer(11, 9, width=8, heads=2, depth=2, activation=activation).double()
    x = torch.randint(11, (3, 9))
    other = x.clone()
    other[:, 6:] = (x[:, 6:] + 1) % 11
    assert torch.allclose(model(x)[:, :6], model(other)[:, :6])
    assert not torch.allclose(model(x)[:, 6:], model(other)[:, 6:])
    stream = model.embed[x] + model.position
    mask = nn.Transformer.generate_square_subsequent_mask(9).double()
    for block in model.blocks:
        theirs = nn.MultiheadAttention(8, 2, batch_first=True).double()
        theirs.in_proj_weight.data, theirs.in_proj_bias.data = (
            block.attend.weight.data,
            block.attend.bias.data,
        )
        theirs.out_proj.weight.data, theirs.out_proj.bias.data = block.out.weight.data, block.out.bias.data
        normed = 3 * F.layer_norm(stream, (8,))
        stream = stream + theirs(normed, normed, normed, attn_mask=mask)[0]
        stream = stream + block.down(ACTIVATIONS[activation](block.up(3 * F.layer_norm(stream, (8,)))))
    model.gain.fill_(3.0)
    assert torch.allclose(model(x), F.layer_norm(stream, (8,)) @ model.embed.T)


def test_an_unknown_activation_of_a_decoder():
    with pytest.raises(UsageError, match="MT470 no activation is called 'rleu'; did you mean 'relu'"):
        SequenceTransformer(activation="rleu")
