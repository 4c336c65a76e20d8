"""The exported program as a signal: same numbers as the network, in every world, on networks as users have them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import networks
import pytest
import torch
from asking import Failed, read
from torch import nn

from microtome.folds import All, Collect, Rows, Sample
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


@pytest.mark.parametrize("name", ["hf_bert", "hf_gpt2", "resnet", "shared_weights", "two_inputs", "lstm"])
def test_networks_as_users_have_them(name):
    model, data = getattr(networks, name)()
    subject = Subject(model, data)
    # The second batch holds sequences of another length: it is captured by itself.
    over = Rows(tuple(range(8, 16))) if name.startswith("hf") else All()
    real, again, site, given = _both(subject, lambda s: s.at(Reinitialised(0)), size=None, over=over)
    torch.testing.assert_close(again, real, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(site, given)


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
