"""Terms against torch written by hand, their costs against torch's counter; programs made into modules again."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest
import torch
from interpret_zoo import MODELS, build
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from microtome.errors import UsageError
from microtome.interpret import capture
from microtome.interpret.regenerate import regenerate
from microtome.interpret.terms import Broadcast, Copy, Einsum, Normalise, Parallel, Pointwise, Rename

SIZES = {"n": 3, "i": 5, "h": 7, "o": 2, "t": 4, "s": 4, "k": 6, "v": 8}


def mlp():
    return (
        Einsum("n i -> n h", weight="h i") >> Pointwise("n h", "tanh") >> Einsum("n h -> n o", weight="o h")
    )


def attention():
    return (
        Copy("n t i", 3)
        >> Parallel(Copy("n t i", 1), Rename("n t i", "n s i"), Rename("n t i", "n s i"))
        >> Parallel(
            Einsum("n t i -> n t k", weight="k i"),
            Einsum("n s i -> n s k", weight="k i"),
            Einsum("n s i -> n s v", weight="v i"),
        )
        >> head()
        >> Einsum("n t v -> n t i", weight="i v")
    )


def head():
    return Parallel(Einsum("n t k, n s k -> n t s") >> Normalise("n t s"), Copy("n s v", 1)) >> Einsum(
        "n t s, n s v -> n t v"
    )


def test_a_term_runs_as_torch_by_hand() -> None:
    module = mlp().module(SIZES)
    first, last = (p for p in module.parameters())
    x = torch.randn(3, 5)
    torch.testing.assert_close(module(x)[0], (x @ first.T).tanh() @ last.T)
    module = attention().module(SIZES)
    wq, wk, wv, wo = module.parameters()
    x = torch.randn(3, 4, 5)
    mixed = nn.functional.scaled_dot_product_attention(x @ wq.T, x @ wk.T, x @ wv.T, scale=1.0) @ wo.T
    torch.testing.assert_close(module(x)[0], mixed)
    x, q, k, v = torch.randn(3, 5), torch.randn(3, 4, 6), torch.randn(3, 4, 6), torch.randn(3, 4, 8)
    torch.testing.assert_close(head().module(SIZES)(q, k, v)[0], (q @ k.mT).softmax(-1) @ v)
    torch.testing.assert_close(Broadcast("n i", "m", 3).module(SIZES)(x)[0], x[:, :, None].expand(3, 5, 3))


@pytest.mark.parametrize("make", [mlp, attention, head])
def test_costs_are_torchs(make) -> None:
    term = make()
    module = term.module(SIZES)
    values = [torch.randn([SIZES[a] for a in axes], requires_grad=make is head) for axes in term.inputs]
    with FlopCounterMode(display=False) as counter:
        outputs = module(*values)
    assert counter.get_total_flops() == 2 * term.products(SIZES)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward([y.sum() for y in outputs])
    assert counter.get_total_flops() == 2 * term.backward(SIZES, [make is head] * len(values))[0]


@pytest.mark.parametrize("make", [mlp, attention, head])
def test_a_term_is_drawn(make) -> None:
    root = ElementTree.fromstring(make().svg("a <term>"))
    words = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert words.count("output") == len(make().outputs)
    assert words.count("einsum") == {mlp: 2, attention: 6, head: 2}[make]


def test_wires_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="MT321"):
        Einsum("n i -> n h", weight="h i") >> Pointwise("n o")
    with pytest.raises(UsageError, match="MT321"):
        Einsum("n i -> n z")


@pytest.mark.parametrize("name", MODELS)
def test_a_program_becomes_a_module_again(name: str) -> None:
    model, args = build(name, torch.float64)
    again = regenerate(capture(model, args))
    with torch.no_grad():
        assert float((again(*args) - model(*args)).abs().max()) < 1e-12
    names = dict(model.named_parameters())
    held = dict(again.program.named_parameters())
    assert held and all(names[key] is value for key, value in held.items())
    assert sum(math.prod(p.shape) for p in held.values()) == sum(p.numel() for p in names.values())


def test_training_the_module_trains_the_model() -> None:
    model = nn.Linear(3, 2)
    x = torch.randn(4, 3)
    again = regenerate(capture(model, (x,)))
    torch.optim.SGD(again.parameters(), 0.1).zero_grad()
    again(x).square().sum().backward()
    assert model.weight.grad is not None
    assert again(torch.randn(9, 3)).shape == (9, 2)
