"""The equivalent tree against a slow one that asks unit by unit, and its size against counting."""

import torch
from torch import nn

from microtome.instruments.explain.neural_networks_are_decision_trees import DecisionTrees
from microtome.passes.run import run_instruments
from microtome.subject import Subject


def network(inputs: int, width: int) -> nn.Sequential:
    torch.manual_seed(3)
    layers = [nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2)]
    return nn.Sequential(*layers).double()


def by_asking(model: nn.Sequential, x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Walk the tree: questions are affine in the input, made of the answers before them."""
    weight, shift = torch.eye(len(x), dtype=x.dtype), torch.zeros(len(x), dtype=x.dtype)
    answers: list[int] = []
    for layer in model:
        if isinstance(layer, nn.Linear):
            weight, shift = layer.weight @ weight, layer.weight @ shift + layer.bias
        else:
            on = (weight @ x + shift > 0).to(x.dtype)
            answers += [int(v) for v in on]
            weight, shift = weight * on[:, None], shift * on
    return weight @ x + shift, tuple(answers)


def test_leaves_and_work_are_those_of_asking_unit_by_unit():
    model, n = network(4, 7), 60
    x = torch.randn(n, 4, dtype=torch.float64)
    finding = run_instruments(Subject(model, [(x, torch.arange(n) % 2)]), {"i": DecisionTrees(examples=n)})[
        "i"
    ]
    with torch.no_grad():
        walked = [by_asking(model, row) for row in x]
        out = model(x)
    assert float((torch.stack([value for value, _ in walked]) - out).abs().max()) < 1e-12
    assert finding.value < 1e-12
    assert finding.quantities["leaves reached"].value == len({answers for _, answers in walked})
    answers = torch.tensor([a for _, a in walked])
    told = int((answers != answers[:1]).any(0).sum())
    assert finding.quantities["questions that tell examples apart"].value == told
    assert finding.quantities["multiply-adds of a decision"].value == 14 * 4 + 2 * 4
    assert finding.quantities["work, of the network's"].value == (14 * 4 + 8) / (4 * 7 + 7 * 7 + 7 * 2)


def test_no_feasible_leaf_is_missed_and_none_is_made_up():
    model, n = network(2, 6), 40
    x = 2 * torch.rand(n, 2, dtype=torch.float64) - 1
    x[0], x[1] = -1, 1  # the range of the data is the square
    finding = run_instruments(Subject(model, [(x, torch.arange(n) % 2)]), {"i": DecisionTrees(examples=n)})[
        "i"
    ]
    grid = torch.cartesian_prod(*[torch.linspace(-1, 1, 700, dtype=torch.float64)] * 2)
    with torch.no_grad():
        first = model[0](grid) > 0
        second = model[2](model[1](model[0](grid))) > 0
    seen = len(torch.cat([first, second], 1).unique(dim=0))
    leaves = finding.quantities["feasible leaves"].value
    assert seen <= leaves <= seen + 2  # slivers that the grid steps over
    assert finding.quantities["leaves when joined"].value <= leaves
