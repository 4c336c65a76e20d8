"""Chains at whose end the letter of the far end is asked for, while every node on the way hears other letters too."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from microtome.data.graphs import geometric
from microtome.errors import UsageError


def long_chains(count: int, distance: int, *, letters: int = 4, leaves: int = 2, seed: int = 0) -> list[Any]:
    """Tell the letter of the chain's first node at its last, ``distance`` edges away.

    Every node has a random letter; every node of the chain but its ends has leaves, whose letters are noise. So a mean
    over neighbours thins what comes along the chain by 1 / (2 + leaves) a step, and a node that hears its chain alone
    by 1 / 2 or not at all.

    Args:
        count: graphs; all have the same edges.
        distance: edges from the first node (0) to the last (``distance``).
        letters: how many; the classes.
        leaves: of each node between.
        seed: of the letters.

    Returns:
        Graphs with x [n, letters + 2] (letter, first, last; one-hot), ``target`` [1] and ``root`` [n], true at the
        last node.

    Raises:
        UsageError: MT513 for a chain without an edge, or without two letters.
    """
    if distance < 1 or letters < 2 or leaves < 0:
        raise UsageError(
            "MT513", f"distance={distance}, letters={letters}, leaves={leaves} make no chain",
            fix="an edge and two letters or more",
        )  # fmt: skip
    geometric()
    from torch_geometric.data import Data

    rng = np.random.RandomState(seed)
    inner = np.repeat(np.arange(1, distance), leaves)
    nodes = distance + 1 + len(inner)
    pairs = np.concatenate(
        [
            np.stack([np.arange(distance), np.arange(1, distance + 1)]),
            np.stack([np.arange(distance + 1, nodes), inner]),
        ],
        axis=1,
    )
    edge_index = torch.from_numpy(np.concatenate([pairs, pairs[::-1]], axis=1)).long()
    drawn = torch.from_numpy(rng.randint(letters, size=(count, nodes)))
    x = torch.zeros(count, nodes, letters + 2).scatter_(2, drawn[..., None], 1.0)
    x[:, 0, letters], x[:, distance, letters + 1] = 1.0, 1.0
    root = torch.arange(nodes) == distance
    return [Data(x=x[i], edge_index=edge_index, target=drawn[i, :1], root=root) for i in range(count)]


__all__ = ["long_chains"]
