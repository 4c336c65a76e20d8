"""Pruning by sorting, and its cost by running a pruned copy."""

import copy

import pytest
import torch
import torch.nn.functional as F
from reliability_subjects import data, network, read, same
from torch import nn

from microtome.instruments.compress.magnitude_pruning import MagnitudePruning
from microtome.signals.parameters import MagnitudePruned, RandomPruned, smallest

FRACTIONS = (0.2, 0.5, 0.8)


def pruned(model, names, fraction):
    """A copy without the smallest weights of these tensors together, found by sorting."""
    model = copy.deepcopy(model)
    tensors = [dict(model.named_parameters())[n].data for n in names]
    entries = sorted((abs(float(v)), i, j) for i, t in enumerate(tensors) for j, v in enumerate(t.flatten()))
    for _, i, j in entries[: round(fraction * len(entries))]:
        tensors[i].view(-1)[j] = 0
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_a_pruned_copy(dtype):
    model, batches = network(dtype), data(dtype)
    finding = read(MagnitudePruning(fractions=FRACTIONS, control=0.5), model, batches)
    x, y = (torch.cat([b[i] for b in batches]) for i in range(2))

    def accuracy(of):
        with torch.no_grad():
            return float((of(x).argmax(1) == y).double().mean())

    assert finding.quantities["unpruned accuracy"].value == pytest.approx(accuracy(model))
    sets = {"0.weight": ["0.weight"], "2.weight": ["2.weight"], "all together": ["0.weight", "2.weight"]}
    for name, _, _, *drops, _ in finding.tables["tensors"].rows:
        for fraction, drop in zip(FRACTIONS, drops, strict=True):
            assert drop == pytest.approx(
                accuracy(model) - accuracy(pruned(model, sets[name], fraction)), abs=1e-9
            )


def test_regression_reads_the_loss():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    x = torch.randn(30, 4)
    y = model(x).detach() + 0.1
    finding = read(MagnitudePruning(fractions=FRACTIONS, control=0.5), model, [(x, y)])
    with torch.no_grad():
        added = F.mse_loss(pruned(model, ["0.weight", "2.weight"], 0.5)(x), y) - F.mse_loss(model(x), y)
    assert finding.quantities["loss added at 0.5"].value == pytest.approx(float(added), rel=1e-4)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.9, 1.0])
def test_removes_exactly_as_many_as_asked(fraction):
    weights = {"a": torch.ones(5, 5), "b": torch.randn(3, 5).bfloat16(), "c": torch.zeros(10)}
    for change in (MagnitudePruned(("a", "b"), fraction), RandomPruned(("a", "b"), fraction)):
        found = change.change(None, weights)
        assert found.keys() == {"a", "b"}
        assert sum(int((v == 0).sum()) for v in found.values()) == round(40 * fraction)
        assert found["b"].dtype == torch.bfloat16
    assert torch.equal(weights["a"], torch.ones(5, 5))


def test_ties_go_in_order():
    keys = torch.tensor([2.0, 1.0, 1.0, 1.0, 3.0])
    assert smallest(keys, 2).tolist() == [False, True, True, False, False]


def test_batch_size_does_not_matter():
    model = network(torch.float64)
    same(*(read(MagnitudePruning(), model, data(torch.float64, size)) for size in (7, 64)))


def test_many_tensors_are_capped_and_said():
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(5)))
    x = torch.randn(40, 6)
    finding = read(MagnitudePruning(worlds=22), model, [(x, torch.arange(40) % 6)])
    assert len(finding.tables["tensors"].rows) == 3
    assert (finding.coverage.layers, finding.coverage.layers_total) == (2, 5)
    assert any("2 largest of 5" in caveat for caveat in finding.caveats)


def test_refusals():
    x, y = torch.randn(20, 6), torch.arange(20) % 6

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(6))

        def forward(self, x):
            return x * self.scale

    assert "no weights" in read(MagnitudePruning(), Scale(), [(x, y)]).reason
    assert "fractions" in read(MagnitudePruning(fractions=(1.5,)), nn.Linear(6, 6), [(x, y)]).reason
