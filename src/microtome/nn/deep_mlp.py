"""A fully connected ReLU network of any depth, layers in a row so that a population of them can be cut."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from microtome.errors import UsageError


def deep_mlp(inputs: int, width: int, outputs: int, depth: int) -> nn.Sequential:
    """[n, inputs] -> [n, outputs] by ``depth`` linear layers, the last included, with ReLU between them.

    ``Population.of(lambda: deep_mlp(...), seeds).scale(4)`` inflates all first weights.

    Raises:
        UsageError: MT486 for a depth without a hidden layer.
    """
    if depth < 2:
        raise UsageError("MT486", f"a depth of {depth} leaves no hidden layer", fix="give at least 2")
    sizes = [inputs, *[width] * (depth - 1)]
    hidden = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(width, outputs))


__all__ = ["deep_mlp"]
