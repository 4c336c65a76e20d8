"""Data without the relation, the structure, or the pictures: the randomisation tests of Zhang et al. (2017)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from microtome.data.label_noise import corrupted_labels
from microtome.errors import UsageError, nearest

Randomisation = Literal["true labels", "random labels", "shuffled pixels", "random pixels", "Gaussian pixels"]
RANDOMISATIONS: tuple[Randomisation, ...] = (
    "true labels",
    "random labels",
    "shuffled pixels",
    "random pixels",
    "Gaussian pixels",
)


def randomised(
    x: Tensor, y: Tensor, kind: Randomisation, classes: int, *, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Pictures [n, ...] and labels [n], randomised.

    "random labels": every label drawn anew. "shuffled pixels": one permutation of the pixels, the same for all
    pictures. "random pixels": another permutation for each picture. "Gaussian pixels": noise of the mean and
    deviation of all pixels. The labels of changed pictures are the true ones. One seed gives the same permutation
    whatever n, so training and test pictures can be shuffled alike.

    Raises:
        UsageError: MT496 for an unknown kind.
    """
    if kind not in RANDOMISATIONS:
        raise UsageError(
            "MT496",
            f"no randomisation is called '{kind}'",
            fix=nearest(kind, RANDOMISATIONS) or ", ".join(RANDOMISATIONS),
        )
    draw = torch.Generator().manual_seed(seed)
    flat = x.flatten(1)
    if kind == "random labels":
        return x, corrupted_labels(y, 1.0, classes, seed=seed)
    if kind == "shuffled pixels":
        return flat[:, torch.randperm(flat.shape[1], generator=draw)].view_as(x), y
    if kind == "random pixels":
        return flat.gather(1, torch.rand(flat.shape, generator=draw).argsort(1)).view_as(x), y
    if kind == "Gaussian pixels":
        noise = torch.randn(x.shape, generator=draw, dtype=x.dtype)
        return noise * x.std() + x.mean(), y
    return x, y


__all__ = ["RANDOMISATIONS", "Randomisation", "randomised"]
