"""The energy that hidden units climb on their own while the layer above them has fitted (Tian 2025, Li2).

For hidden values F [n, width] = act(X w) and centred targets Y [n, k], a unit's energy is E = |Y^T act(X w)|^2 / 2.
Once the last layer fits the data with some weight decay, the gradient that reaches the hidden values is proportional to
Y Y^T F, so that each unit's update is the gradient of its own energy, whatever the other units do.
"""

from __future__ import annotations

import torch
from torch import Tensor


def centred_one_hot(answers: Tensor, classes: int) -> Tensor:
    """[..., n] whole numbers -> [..., n, classes] of 0 and 1, less the mean over examples."""
    hot = (answers[..., None] == torch.arange(classes, device=answers.device)).to(torch.get_default_dtype())
    return hot - hot.mean(-2, keepdim=True)


def unit_energy(hidden: Tensor, targets: Tensor) -> Tensor:
    """[..., width] energies of hidden values [..., n, width] for centred targets [..., n, k]."""
    return 0.5 * (targets.to(hidden).mT @ hidden).square().sum(-2)


def centred_squared_error(outputs: Tensor, answers: Tensor) -> Tensor:
    """Half the squared error of class numbers [n] as 0 and 1, outputs [n, k] and targets less their means; mean over n.

    The bias that would fit the means is thereby taken out.
    """
    apart = outputs - outputs.mean(-2, keepdim=True) - centred_one_hot(answers, outputs.shape[-1])
    return 0.5 * apart.square().sum(-1).mean()


__all__ = ["centred_one_hot", "centred_squared_error", "unit_energy"]
