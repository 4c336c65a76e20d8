"""PATTERN and CLUSTER: tasks on the nodes of random block models (Dwivedi et al. 2023)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from microtome.data.graphs import geometric
from microtome.errors import UsageError


def pattern_graphs(
    count: int = 100,
    *,
    blocks: int = 5,
    sizes: tuple[int, int] = (5, 35),
    inside: float = 0.5,
    between: float = 0.35,
    pattern: int = 20,
    patterns: int = 100,
    seed: int = 0,
) -> list[Any]:
    """Find the pattern: y is 1 for the nodes of a subgraph whose nodes are joined to everyone as to one another.

    Args:
        count: graphs.
        blocks, sizes: blocks a graph, and fewest and most nodes of each.
        inside, between: chance of an edge within a block and between two; the pattern's are both ``inside``.
        pattern: nodes of the pattern.
        patterns: how many different ones there are, shared by the graphs of one seed.
        seed: of everything.

    Returns:
        Graphs with x [n, 3], a random letter of three, one-hot, and y [n].
    """
    _checked(count, sizes, inside, between)
    rng = np.random.default_rng(seed)
    kept = [
        (np.triu(rng.random((pattern, pattern)) < inside, 1), rng.integers(0, 3, pattern))
        for _ in range(patterns)
    ]
    found = []
    for _ in range(count):
        block = np.repeat(np.arange(blocks), rng.integers(sizes[0], sizes[1] + 1, blocks))
        drawn, letters = kept[int(rng.integers(patterns))]
        member = np.concatenate([block, np.full(pattern, blocks)])
        same, planted = member[:, None] == member, member == blocks
        chance = np.where(same | planted[:, None] | planted, inside, between)
        upper = np.triu(rng.random(chance.shape) < chance, 1)
        upper[len(block) :, len(block) :] = drawn
        letter = np.concatenate([rng.integers(0, 3, len(block)), letters])
        found.append(_made(upper, np.eye(3)[letter], planted, rng))
    return found


def cluster_graphs(
    count: int = 100,
    *,
    blocks: int = 6,
    sizes: tuple[int, int] = (5, 35),
    inside: float = 0.55,
    between: float = 0.25,
    seed: int = 0,
) -> list[Any]:
    """Find the blocks from one labelled node each: y is the block.

    Args:
        count: graphs.
        blocks, sizes: blocks a graph, and fewest and most nodes of each.
        inside, between: chance of an edge within a block and between two.
        seed: of everything.

    Returns:
        Graphs with x [n, blocks + 1], one-hot over (not told, block 0, ...), and y [n].
    """
    _checked(count, sizes, inside, between)
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        many = rng.integers(sizes[0], sizes[1] + 1, blocks)
        block = np.repeat(np.arange(blocks), many)
        told = many.cumsum() - many + rng.integers(0, many)
        letter = np.zeros(len(block), dtype=np.int64)
        letter[told] = np.arange(blocks) + 1
        chance = np.where(block[:, None] == block, inside, between)
        found.append(
            _made(np.triu(rng.random(chance.shape) < chance, 1), np.eye(blocks + 1)[letter], block, rng)
        )
    return found


def _checked(count: int, sizes: tuple[int, int], inside: float, between: float) -> None:
    if count < 1 or not 1 <= sizes[0] <= sizes[1] or not 0 <= between <= 1 or not 0 <= inside <= 1:
        raise UsageError(
            "MT452",
            f"count={count}, sizes={sizes}, inside={inside}, between={between}: need 1, 1 <= a <= b, 0..1",
        )


def _made(upper: np.ndarray, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> Any:
    geometric()
    from torch_geometric.data import Data

    order = rng.permutation(len(y))
    dense = (upper | upper.T)[order][:, order]
    edges = torch.from_numpy(np.stack(dense.nonzero()))
    return Data(
        x=torch.from_numpy(x[order]).float(), edge_index=edges, y=torch.from_numpy(y[order].astype(np.int64)),
        num_nodes=len(y),
    )  # fmt: skip


__all__ = ["cluster_graphs", "pattern_graphs"]
