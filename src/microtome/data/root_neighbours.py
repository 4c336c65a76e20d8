"""Trees whose answer is the mean of some of the root's neighbours only (Finkelshtein et al. 2024)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from microtome.data.graphs import geometric


def root_neighbours(
    count: int = 1000,
    *,
    degree: int = 6,
    children: tuple[int, int] = (3, 8),
    features: int = 5,
    seed: int = 0,
) -> list[Any]:
    """Rooted trees of depth two: predict the mean features of those neighbours of the root that have a given degree.

    Each child of the root has ``degree`` edges with probability one half (at least one child has), otherwise any other
    number from 2 to 2 ``degree`` - 2, so that the mean degree tells nothing. Features are uniform in [-2, 2].

    Args:
        degree: of the neighbours that count, their edge to the root included.
        children: least and largest number of children of the root.
        seed: of everything.

    Returns:
        ``Data`` each: x [nodes, features], edge_index both ways, ``target`` [1, features], ``root`` [nodes] whether a
        node is the root, ``edge_truth`` [edges] 1 for the edges into the root that are to be kept.
    """
    geometric()
    from torch_geometric.data import Data

    rng, found = np.random.RandomState(seed), []
    others = [d for d in range(2, 2 * degree - 1) if d != degree]
    for _ in range(count):
        width = rng.randint(children[0], children[1] + 1)
        counts = rng.rand(width) < 0.5
        counts[rng.randint(width)] = True
        degrees = np.where(counts, degree, rng.choice(others, width))
        parents = np.concatenate(
            [np.zeros(width, dtype=np.int64), 1 + np.repeat(np.arange(width), degrees - 1)]
        )
        nodes = 1 + len(parents)
        pairs = torch.from_numpy(np.stack([np.arange(1, nodes), parents]))
        x = torch.from_numpy(rng.uniform(-2, 2, (nodes, features))).float()
        edge_index = torch.cat([pairs, pairs.flip(0)], 1)
        chosen = torch.zeros(nodes, dtype=torch.bool)
        chosen[1 : 1 + width] = torch.from_numpy(counts)
        root = torch.zeros(nodes, dtype=torch.bool)
        root[0] = True
        found.append(
            Data(
                x=x,
                edge_index=edge_index,
                target=x[chosen].mean(0, keepdim=True),
                root=root,
                edge_truth=(root[edge_index[1]] & chosen[edge_index[0]]).long(),
            )
        )
    return found


__all__ = ["root_neighbours"]
