"""Networks of which it is known by how many operations the examples of a batch meet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from microtome.folds import row_uniform
from microtome.specimen import Specimen, Truth, specimen
from microtome.subject import Subject

NAME = "security/batch_isolation_audit"


class _Apart(nn.Module):
    """Layer-norm, attention within an example, a gather within an example."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix, self.head = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 3, 4] -> [n, 3]."""
        y = self.mix(self.norm(x))
        y = torch.softmax(y @ y.transpose(1, 2), -1) @ y
        order = x.argsort(1)
        return self.head(y.gather(1, order).flatten(1))


class _Meeting(nn.Module):
    """Centred by the batch, and a softmax over it; between them a layer that does no harm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(12, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 3, 4] -> [n, 3]."""
        x = x.flatten(1)
        return self.head(torch.relu(self.first(x - x.mean(0))) * x[:, :6].softmax(0))


def _data(n: int = 24) -> list[tuple[Tensor, Tensor]]:
    return [(row_uniform(torch.arange(n * 12), 3).float().reshape(n, 3, 4), torch.arange(n) % 3)]


def _kept(model: nn.Module) -> nn.Module:
    """Weights drawn by a fixed hash; none of them is zero."""
    with torch.no_grad():
        for k, parameter in enumerate(model.parameters()):
            drawn = row_uniform(torch.arange(parameter.numel()), 17, k).float()
            parameter.copy_((2 * drawn - 1).reshape(parameter.shape))
    return model


@specimen
def rows_apart() -> Specimen:
    """Attention, sorting and gathering, all within one example."""
    subject = Subject(_kept(_Apart()), _data(), task="classification", name="rows apart")
    return Specimen(
        "rows apart", subject,
        (
            Truth(NAME, "leaking operations", 0.0, 0.0, "nothing works along dimension 0"),
            Truth(NAME, "largest change by a companion", 0.0, 0.0, "answers are the same numbers"),
            Truth(NAME, "operations followed", 10.0, 0.0, "norm, linear, transpose, two products, softmax, sort, "
                  "gather, flatten, linear"),
            Truth(NAME, "modules that leak in train mode", 0.0, 0.0, "there is no batch-norm"),
        ),
    )  # fmt: skip


@specimen
def rows_meet() -> Specimen:
    """A mean and a softmax over the batch."""
    subject = Subject(_kept(_Meeting()), _data(), task="classification", name="rows meet")
    return Specimen(
        "rows meet", subject,
        (
            Truth(NAME, "leaking operations", 2.0, 0.0, "the mean and the softmax along dimension 0"),
            Truth(NAME, "operations followed", 10.0, 0.0, "flatten, mean, minus, linear, relu, a slice of rows and of "
                  "columns, softmax, times, linear"),
        ),
    )  # fmt: skip
