"""Handwritten digits, 1797 scans of 8 x 8 pixels: small enough to ship, real enough to be wrong about."""

from __future__ import annotations

from functools import cache
from importlib.resources import as_file, files
from typing import Literal

import numpy as np
import torch

from microtome.data.arrays import BATCH_SIZE, ArrayBatches
from microtome.errors import UsageError, nearest

SPLITS = ("train", "test", "all")
LEVELS = 16
"""Pixels count the ink of a 4 x 4 block, 0 to 16."""


@cache
def arrays() -> tuple[np.ndarray, np.ndarray]:
    """Pixels [1797, 8, 8] in 0..16 and labels [1797], as they were published."""
    with (
        as_file(files("microtome.data").joinpath("digits.npz")) as path,
        np.load(path, allow_pickle=False) as stored,
    ):
        x, y = stored["x"], stored["y"]
    x.setflags(write=False)
    y.setflags(write=False)
    return x, y


def split_rows(split: str) -> np.ndarray:
    """Row numbers of a split: of each class, in the published order, every third row is for testing.

    A rule instead of a draw, so that no version of any random generator can change it: 1201 and 596 rows.

    Raises:
        UsageError: MT109 for an unknown split.
    """
    if split not in SPLITS:
        raise UsageError(
            "MT109", f"the digits have no split '{split}'", fix=nearest(split, SPLITS) or "train, test"
        )
    _, y = arrays()
    if split == "all":
        return np.arange(len(y))
    place = np.empty(len(y), dtype=np.int64)
    for label in np.unique(y):
        rows = np.flatnonzero(y == label)
        place[rows] = np.arange(len(rows))
    return np.flatnonzero((place % 3 == 2) == (split == "test"))


def digits(
    split: Literal["train", "test", "all"] = "test", *, batch_size: int = BATCH_SIZE, seed: int = 0
) -> ArrayBatches:
    """Batches of (x, y): x float32 [n, 1, 8, 8] in 0..1, y int64 [n].

    Args:
        split: "train" (1201 rows), "test" (596) or "all".
        batch_size: rows a batch.
        seed: order of the rows; the split does not depend on it.
    """
    x, y = arrays()
    # RandomState's stream is frozen by numpy's compatibility promise; Generator's is not.
    rows = np.random.RandomState(seed).permutation(split_rows(split))
    images = torch.from_numpy(x[rows].astype(np.float32) / LEVELS).unsqueeze(1)
    return ArrayBatches(images, torch.from_numpy(y[rows].astype(np.int64)), batch_size)


def tensors(
    split: Literal["train", "test", "all"] = "test", *, flat: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x, y) of a split, in the published order: x float32 [n, 1, 8, 8] in 0..1, or [n, 64]; y int64 [n]."""
    x, y = arrays()
    rows = split_rows(split)
    images = torch.from_numpy(x[rows].astype(np.float32) / LEVELS).unsqueeze(1)
    return images.flatten(1) if flat else images, torch.from_numpy(y[rows].astype(np.int64))
