"""Examples in groups far apart, one of each group with a label of its own: who is near whom is known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from microtome.specimen import Specimen, Truth, specimen
from microtome.subject import Subject

GROUPS, SIZE = 30, 6


class _Places(nn.Module):
    """Three classes by the group's remainder; the features are the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Identity()
        self.head = nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(3))

    def forward(self, x: Tensor) -> Tensor:
        """[n, 3] -> [n, 3]."""
        return self.head(self.features(x * 1.0))


@specimen
def planted_neighbours() -> Specimen:
    """30 groups of six; each lies along its class's axis, and its last member carries the next class's label."""
    group = torch.arange(GROUPS).repeat_interleave(SIZE)
    member = torch.arange(SIZE).repeat(GROUPS)
    x = 100.0 * (1 + group // 3)[:, None] * torch.nn.functional.one_hot(group % 3, 3)
    x = x + 0.1 * member[:, None] * torch.tensor([1.0, 0.3, 0.2])
    label = (group + (member == SIZE - 1).long()) % 3
    data = [(x[i : i + 50], label[i : i + 50]) for i in range(0, len(x), 50)]
    subject = Subject(_Places(), data, task="classification", name="planted neighbours")
    name, why = "reliability/examples", "the five nearest are the rest of the group, of which one is odd"
    # Five members see one odd of five, the odd one sees five of five.
    return Specimen(
        "planted neighbours",
        subject,
        (
            Truth(name, "foreign neighbours", (5 * 1 / 5 + 1) / 6, 1e-9, why),
            Truth(name, "errors", 1 / 6, 1e-9, "the answer is the group's class, the last label another"),
            Truth(name, "errors whose neighbours have the answer's label", 1.0, 1e-9, why),
        ),
    )
