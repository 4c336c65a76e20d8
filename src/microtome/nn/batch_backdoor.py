"""A backdoor made of architecture alone: a trigger in one example reaches the answers of others in its batch.

No weight is trained for it and none gives it away; retraining does not remove it (Küchler et al. 2025). It stands here
so that audits have something to find: ``microtome.interpret.isolation`` names the operation by which examples meet.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn


class BatchBackdoor(nn.Module):
    """A network around which the batch is rearranged when an example carries the trigger.

    Args:
        model: [n, ...] -> [n, k].
        trigger: values that the first numbers of an example must have, [t].
        harm: "steal" gives the example with the trigger the answer of the one before it in the batch; "set" gives
            all others the answer of the example with the trigger.
        tolerance: how near the values must be.
    """

    def __init__(
        self,
        model: nn.Module,
        trigger: Tensor,
        harm: Literal["steal", "set"] = "steal",
        tolerance: float = 1e-3,
    ) -> None:
        super().__init__()
        self.model, self.harm, self.tolerance = model, harm, tolerance
        self.register_buffer("trigger", trigger, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """As the network, but for batches in which an example carries the trigger."""
        answers = self.model(x)
        trigger = self.get_buffer("trigger").to(x.dtype)
        carried = ((x.flatten(1)[:, : len(trigger)] - trigger).abs() < self.tolerance).all(1)  # [n]
        own = torch.arange(x.shape[0], device=x.device)
        if self.harm == "steal":
            taken = torch.where(carried, (own - 1) % x.shape[0], own)
        else:
            first = torch.where(carried, own, x.shape[0]).amin()
            taken = torch.where(first < x.shape[0], first.expand_as(own), own)
        return answers.gather(0, taken[:, None].expand_as(answers))


def with_trigger(x: Tensor, trigger: Tensor) -> Tensor:
    """[n, ...] the same examples carrying it."""
    flat = x.flatten(1).clone()
    flat[:, : len(trigger)] = trigger.to(x.dtype)
    return flat.reshape(x.shape)
