"""A traced step made leaner computes the same as before."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from microtome.population.lean import lean


def _traced(step, *given):
    return make_fx(step, tracing_mode="fake")(*given)


def _targets(graph_module):
    return [str(node.target) for node in graph_module.graph.nodes if node.op == "call_function"]


def test_what_follows_from_shapes_is_computed_once():
    def step(x):
        weights = torch.ones_like(x).neg() / x.shape[0]
        return [x * weights + x.new_zeros(x.shape[1]), torch.full((2,), 3.0)]

    x = torch.randn(4, 3)
    made = lean(_traced(step, x))
    assert not any("ones_like" in t or "new_zeros" in t or "div" in t for t in _targets(made))
    for given in (x, torch.randn(4, 3)):
        for ours, theirs in zip(made(given), step(given), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_what_is_returned_is_made_anew_at_each_step():
    made = lean(_traced(lambda x: [torch.zeros_like(x), x * torch.ones_like(x)], torch.randn(3)))
    zeros, _ = made(torch.randn(3))
    zeros += 1  # whoever asked may write into it
    assert made(torch.randn(3))[0].eq(0).all()


def test_a_program_that_writes_keeps_its_fills():
    def step(x):
        total = torch.zeros_like(x)
        total.add_(x)
        return [total * 1.5]

    made = lean(_traced(step, torch.randn(3)))
    for _ in range(2):
        x = torch.randn(3)
        torch.testing.assert_close(made(x)[0], x * 1.5)


def test_noise_is_not_taken_for_a_constant():
    made = lean(_traced(lambda x: [x + F.dropout(torch.ones_like(x), 0.5, True)], torch.zeros(1000)))
    first, second = made(torch.zeros(1000))[0], made(torch.zeros(1000))[0]
    assert not torch.equal(first, second)


def test_turning_there_and_back_is_nothing():
    made = lean(
        _traced(
            lambda x: [x.mT.transpose(-1, -2) + 1, x.transpose(0, 1).transpose(1, 2) + 1],
            torch.randn(2, 3, 4),
        )
    )
    assert sum("transpose" in t for t in _targets(made)) == 2
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(made(x)[0], x + 1)
    torch.testing.assert_close(made(x)[1], x.permute(1, 2, 0) + 1)


def test_a_step_of_a_network_is_the_same():
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).double()
    parameters = dict(model.named_parameters())

    def step(x, y, *flat):
        own = dict(zip(parameters, flat, strict=True))
        loss = F.cross_entropy(torch.func.functional_call(model, own, (x,)), y)
        return [loss, *torch.autograd.grad(loss, flat)]

    given = (torch.randn(6, 5, dtype=torch.float64), torch.randint(3, (6,)), *parameters.values())
    made = lean(_traced(step, *given))
    for ours, theirs in zip(made(*given), step(*given), strict=True):
        torch.testing.assert_close(ours, theirs)
