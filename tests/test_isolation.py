"""The isolation analysis: every rule against what the operation does, and the suite of networks."""

from __future__ import annotations

import interpret_zoo as zoo
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.interpret import capture
from microtome.interpret.isolation import audit, by_the_batch, cross_rows, isolation, keepers
from microtome.interpret.isolation_rules import counting
from microtome.nn.batch_backdoor import BatchBackdoor, with_trigger
from microtome.studies.security._isolation_suite import APART, HARD, MEETS, TRIGGER, built

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.mark.parametrize("name", [*APART, *HARD, *MEETS])
def test_no_leak_is_missed_and_no_proof_is_contradicted(name):
    make = {**APART, **HARD, **MEETS}[name]
    for seed in (0, 1):
        case = built(make, seed)
        found = audit(case.model, case.args, probes=case.known)
        if case.leaks:
            assert found.verdict == "leaks"  # seen, once a trigger is known
            assert found.static is None or found.static.leaks
        else:
            assert found.crossing is not None
            assert found.crossing.change == 0
            assert (found.verdict == "isolated") == (name in APART)


@pytest.mark.parametrize("name", zoo.MODELS)
def test_networks_of_every_family_are_proven(name):
    model, args = zoo.build(name)
    graph = capture(model, args)
    found = isolation(graph, graph.bind(args))
    assert found.proved, [leak.text() for leak in found.leaks]
    assert cross_rows(model, args).change == 0


class _Does(nn.Module):
    def __init__(self, does) -> None:
        super().__init__()
        self.does = does

    def forward(self, x: Tensor) -> Tensor:
        return self.does(x)


TABLE = torch.arange(12.0).reshape(6, 2)
SHUFFLED = torch.cat([torch.arange(90), torch.arange(90, 100).flip(0)])
KEEP = {
    "permute": lambda x: x.permute(2, 0, 1),
    "batch joined with positions": lambda x: x.reshape(-1, x.shape[2]).tanh().reshape(x.shape[0], -1, x.shape[2]),
    "positions joined with batch": lambda x: x.transpose(0, 1).reshape(-1, x.shape[2]),
    "repeated": lambda x: x.repeat(3, 1, 1),
    "repeated each": lambda x: x.repeat_interleave(2, 0),
    "joined with a constant": lambda x: torch.cat([torch.ones(x.shape[0], 1, x.shape[2]), x], 1),
    "stacked": lambda x: torch.stack([x, 2 * x], 2).flatten(1),
    "indexed by constants": lambda x: x[:, [2, 0, 0]],
    "indexed by own contents": lambda x: x[torch.arange(x.shape[0]), x[:, :, 0].argmax(1)],
    "table by own contents": lambda x: TABLE[(x[:, 0] > 0).long().sum(1).clamp(max=5)],
    "embedding": lambda x: F.embedding((x[:, :, 0] > 0).long(), TABLE),
    "one hot": lambda x: F.one_hot((x[:, 0] > 0).long().sum(1), 6).float(),
    "written in place": lambda x: _written(x),
    "outer product": lambda x: x[:, :, :, None] * x[:, :, None, :],
    "einsum": lambda x: torch.einsum("bij,bik->bjk", x, x),
    "vector times matrix": lambda x: torch.matmul(torch.ones(x.shape[1]), x),
    "topk": lambda x: x.topk(2, 1).values,
    "norm": lambda x: x / x.norm(dim=(1, 2), keepdim=True),
    "padded": lambda x: F.pad(x, (1, 1, 0, 2), value=3.0),
    "masked": lambda x: x.masked_fill(x < 0, -9.0),
    "triangular": lambda x: (x @ x.transpose(1, 2)).tril(),
    "interpolated": lambda x: F.interpolate(x[:, None], scale_factor=2, mode="bilinear"),
    "average pool": lambda x: F.avg_pool1d(x, 2),
    "unfold": lambda x: x.unfold(1, 2, 1),
    "batch as channels": lambda x: F.avg_pool2d(x, 2),  # [n, h, w]: n are channels, which a pool leaves apart
    "channels first norm": lambda x: F.batch_norm(x.transpose(0, 1), None, None, training=True),
}  # fmt: skip
LEAK = {
    "constant place": lambda x: x + x[1],
    "shifted": lambda x: torch.cat([x[1:], x[:1]]),
    "reversed": lambda x: x.flip(0),
    "by a table, in order for small batches": lambda x: x[SHUFFLED[: x.shape[0]]],
    "rolled": lambda x: x.roll(385, 0),  # a multiple of 5, 7 and 11
    "transposed": lambda x: x[:, 0] @ x[:, 0].T,
    "summed by einsum": lambda x: torch.einsum("bij,cij->bc", x, x),
    "batch into features": lambda x: x.reshape(x.shape[1], -1),
    "indexed by others' contents": lambda x: x[x[:, 0, 0].argsort()],
    "scattered": lambda x: torch.zeros_like(x).scatter_add(0, (x > 0).long(), x),
    "written over": lambda x: _overwritten(x),
    "variance": lambda x: x / x.var(0),
    "layer norm over all": lambda x: x / x.std(),
    "running maximum": lambda x: x.cummax(0).values,
    "pairs": lambda x: (x[:, None] - x[None]).abs().sum((2, 3)),
    "distances": lambda x: torch.cdist(x.flatten(1), x.flatten(1)),
    "batch as positions": lambda x: F.avg_pool1d(x.permute(1, 2, 0), 3, 1, 1),
    "batch-norm by itself": lambda x: F.batch_norm(x, None, None, training=True),
}  # fmt: skip


def _written(x: Tensor) -> Tensor:
    y = torch.zeros(x.shape[0], 4, x.shape[2])
    y[:, :3] = x
    return y


def _overwritten(x: Tensor) -> Tensor:
    y = x.clone()
    y[0] = x[2]
    return y


@pytest.mark.parametrize("name", KEEP)
def test_what_keeps_examples_apart_is_proven(name):
    x = torch.randn(6, 3, 4)
    graph = capture(_Does(KEEP[name]), (x,))
    found = isolation(graph)
    assert found.proved, [leak.text() for leak in found.leaks]


@pytest.mark.parametrize("name", LEAK)
def test_what_joins_examples_is_named(name):
    x = torch.randn(6, 3, 4)
    model = _Does(LEAK[name])
    found = isolation(capture(model, (x,)))
    assert not found.proved
    assert all("test_isolation" in leak.node.where for leak in found.leaks)
    if len(model(x)) == len(x) and "small batches" not in name:  # an answer an example
        assert cross_rows(model, (x,)).change > 0


def test_counting_finds_axis_and_repetition():
    numbers = torch.arange(1.0, 6)
    assert counting(numbers[:, None].expand(5, 3), 5) == (0, 1)
    assert counting(numbers.repeat_interleave(2)[None], 5) == (1, 2)
    assert counting(numbers.repeat(2), 5) == (0, 1)
    assert counting(torch.zeros(5, 2), 5) == (None, 1)
    assert counting(numbers.flip(0), 5) is None
    assert counting(numbers[:3], 5) is None


def test_a_backdoor_steals_and_sets_answers_without_a_weight_of_its_own():
    torch.manual_seed(0)
    inner = nn.Linear(8, 3)
    x = torch.randn(5, 8)
    x[3] = with_trigger(x[3:4], TRIGGER)[0]
    with torch.no_grad():
        own = inner(x)
        stolen, placed = (BatchBackdoor(inner, TRIGGER, harm)(x) for harm in ("steal", "set"))
    assert torch.equal(stolen[3], own[2])
    assert torch.equal(stolen[[0, 1, 2, 4]], own[[0, 1, 2, 4]])
    assert torch.equal(placed, own[3].expand(5, 3))
    backdoored = BatchBackdoor(inner, TRIGGER)
    assert list(backdoored.state_dict()) == ["model.weight", "model.bias"]
    clean = torch.randn(5, 8)
    assert torch.equal(backdoored(clean), inner(clean))


def test_modes_are_told_apart_and_left_as_found():
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    x, before = torch.randn(6, 8), {k: v.clone() for k, v in model.state_dict().items()}
    assert audit(model.train(), (x,)).verdict == "leaks"
    assert keepers(model) == ("1",)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert audit(model.eval(), (x,)).verdict == "isolated"
    assert keepers(model) == ()
    assert by_the_batch(model) == ("1 (BatchNorm1d)",)


def test_a_network_that_cannot_be_captured_is_never_called_isolated():
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x[0, 0]) > 1e9 else 2 * x

    found = audit(Branching(), (torch.randn(4, 3),))
    assert found.verdict == "not proved"
    assert "MT301" in found.reason
