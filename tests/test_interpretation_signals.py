"""The exported program as a signal: same numbers as the network, in every world, on networks as users have them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import networks
import pytest
import torch
from asking import Failed, read
from torch import nn

from microtome.errors import Refusal, UsageError
from microtome.folds import All, Collect, Rows, Sample
from microtome.interpret import capture, concrete
from microtome.laws.subjects import images, tokens
from microtome.signals import answer, class_score, gradient, inputs, outputs, rows
from microtome.signals.expression import Constant
from microtome.signals.interpretation import Interpretation, Scene, interpreted
from microtome.signals.perturb import Noise
from microtome.signals.reinitialise import Reinitialised
from microtome.subject import Subject


@dataclass(frozen=True)
class Again(Interpretation):
    """The program on numbers: its output, and what it starts from."""

    def read(self, scene: Scene) -> Any:
        return scene.run().output, scene.site(scene.places)


@dataclass(frozen=True)
class Slope(Interpretation):
    def read(self, scene: Scene) -> Any:
        return scene.slope(scene.run().output)


def _both(subject: Subject, move=lambda s: s, size: int | None = 5, over=All()):  # noqa: B008
    again = move(interpreted(Again()))
    from microtome.signals import derive

    parts = [derive(_part, again, index=i) for i in range(2)]
    found = read(
        subject,
        Collect(signals=(rows, move(outputs), parts[0], parts[1], move(inputs)), over=over),
        size=size,
    )
    return found[1:]


def _part(value: tuple[Any, ...], *, index: int) -> Any:
    return value[index]


@pytest.mark.parametrize("make", [images, tokens])
@pytest.mark.parametrize(
    "move", [lambda s: s, lambda s: s.at(Reinitialised(0)), lambda s: s.under(Noise(0.01))]
)
def test_the_program_in_every_world(make, move):
    real, again, site, given = _both(make(), move)
    torch.testing.assert_close(again, real)
    torch.testing.assert_close(site, given)


@pytest.mark.parametrize(
    "name",
    [
        "hf_bert",
        "hf_gpt2",
        "resnet",
        "shared_weights",
        "two_inputs",
        "lstm",
        "nano_gpt",
        "exported",
        "dict_output",
        "loss_first_output",
        "regression_flat",
    ],
)
def test_networks_as_users_have_them(name):
    model, data = getattr(networks, name)()
    subject = Subject(model, data)
    # The second batch holds sequences of another length: it is captured by itself.
    over = Rows(tuple(range(8, 16))) if name.startswith("hf") else All()
    real, again, site, given = _both(subject, lambda s: s.at(Reinitialised(0)), size=None, over=over)
    torch.testing.assert_close(again, real, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(site, given)


class HiddenFirst(nn.Module):
    """Returns its hidden values before its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        hidden = self.body(x).relu()
        return {"hidden": hidden, "logits": self.head(hidden)}


def test_the_answer_is_the_one_that_is_measured():
    real, again, _, _ = _both(Subject(HiddenFirst(), [(torch.randn(9, 4), torch.arange(9) % 3)]))
    assert again.shape == (9, 3)
    torch.testing.assert_close(again, real)


def test_a_network_that_draws_has_no_fixed_program():
    with pytest.raises(Failed, match="draws random numbers"):
        read(Subject(*networks.functional_dropout()), Collect(signals=(rows, interpreted(Slope()))))


class Pooled(nn.Module):
    """A graph network that takes tensors, and counts the graphs by the index of its nodes."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x, edge_index, batch):
        from torch_geometric.data import Data

        return self.inner(Data(x=x, edge_index=edge_index, batch=batch))


@dataclass(frozen=True)
class Answers(Interpretation):
    """The program's outputs for the examples: the picked nodes, or the graphs."""

    def read(self, scene: Scene) -> Any:
        found = scene.run().output
        return found if scene.batch.pick is None else found[scene.batch.pick]


@pytest.mark.parametrize("name", ["gcn", "gin", "gin_shuffled", "pooled"])
@pytest.mark.parametrize("move", [lambda s: s, lambda s: s.at(Reinitialised(0))])
def test_graph_networks(name, move):
    pytest.importorskip("torch_geometric")
    model, data = networks.gin() if name == "pooled" else getattr(networks, name)()
    subject = Subject(Pooled(model) if name == "pooled" else model, data)
    asked = Collect(signals=(rows, move(outputs), move(interpreted(Answers()))))
    _, real, again = read(subject, asked)
    torch.testing.assert_close(again, real)
    layers = {node.layer for node in subject.graph.operations}
    prefix = "inner." if name == "pooled" else ""
    assert {prefix + x for x in (("conv1.lin",) if name == "gcn" else ("conv1.nn.0", "head"))} <= layers
    assert "forward" not in vars(subject.model)


def test_a_batch_of_another_number_of_graphs_is_not_taken_for_the_same():
    pytest.importorskip("torch_geometric")
    model, data = networks.gin()
    first, *_, last = list(data)  # 5 graphs, 2 graphs
    graph = capture(model, (first,))
    assert torch.equal(concrete(graph, (first,)).result, model.eval()(first))
    with pytest.raises(UsageError, match="MT306"):
        concrete(graph, (last,))
    other = first.clone()
    other.batch = other.batch.clamp(max=3)
    with pytest.raises(UsageError, match="counting 5 groups, not 4"):
        concrete(graph, (other,))


def test_time_first_batches_are_refused_clearly():
    subject = Subject(*networks.gru_data_time_first())
    with pytest.raises(Refusal, match="examples along dimension 0"):
        _ = subject.graph
    inside = Subject(*networks.gru_time_first())  # it only transposes inside: no matter
    assert inside.graph.operations


def test_the_slope_of_a_score():
    subject = images()
    ids, classes = read(subject, Collect(signals=(rows, answer()), over=Sample(9)))
    score = class_score(Constant(classes, ids))
    _, slope = read(subject, Collect(signals=(rows, interpreted(Slope(), score)), over=Sample(9)), size=4)
    assert torch.equal(slope, nn.functional.one_hot(classes, slope.shape[1]).to(slope.dtype))


class Sorts(nn.Module):
    """Its branch depends on values: it cannot be exported."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x) if x.sum() > 1e9 else self.layer(-x)


def test_what_cannot_be_captured_fails_alone():
    subject = Subject(Sorts(), [(torch.randn(8, 4), torch.arange(8) % 3)])
    assert read(subject, Collect(signals=(rows, gradient(outputs))))[1].shape == (8, 4)
    with pytest.raises(Failed, match="refused: MT301 Sorts cannot be captured"):
        read(subject, Collect(signals=(rows, interpreted(Slope()))))
