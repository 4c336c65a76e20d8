"""A network whose answers are fixed by hand: accuracy and confusion are counted, not estimated."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from microtome.specimen import Specimen, Truth, specimen
from microtome.subject import Subject


class _Echo(nn.Module):
    """The inputs are the logits."""

    def forward(self, x: Tensor) -> Tensor:
        """[n, k] -> [n, k]."""
        return x * 1.0


@specimen
def planted_answers() -> Specimen:
    """250 examples in five classes, 200 answered right by construction, 50 taken for the next class."""
    labels = torch.arange(250) % 5
    answers = torch.where(torch.arange(250) < 200, labels, (labels + 1) % 5)
    logits = 3.0 * torch.nn.functional.one_hot(answers, 5).float()
    subject = Subject(
        _Echo(), [(logits[i : i + 60], labels[i : i + 60]) for i in range(0, 250, 60)], name="planted answers"
    )
    why = "200 of 250 answers are planted right"
    return Specimen("planted answers", subject, (Truth("reliability/accuracy", "accuracy", 0.8, 1e-12, why),))
