"""Items at the leaves of a binary tree and their features: data with structure at several scales, known exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from microtome.errors import UsageError


def tree(depth: int) -> tuple[Tensor, Tensor]:
    """(x, y) of 2^depth items with one feature a node of the tree.

    x [n, n] is sqrt(n) times the identity: every item is itself, and inputs are white. y [n, 2n - 1] is 1 where the
    item lies below the node (root first, then level by level), so items share features as far as they share a path.

    See :func:`tree_values` for the singular values of mean y x^T.
    """
    if depth < 1:
        raise UsageError("MT462", f"a tree of depth {depth} has no branches", fix="give at least 1")
    n = 1 << depth
    item = torch.arange(n)
    levels = [(item[:, None] >> (depth - j)) == torch.arange(1 << j) for j in range(depth + 1)]
    return n**0.5 * torch.eye(n), torch.cat(levels, 1).float()


def tree_values(depth: int) -> Tensor:
    """[2^depth] singular values of mean y x^T of :func:`tree`, largest first.

    The item kernel y y^T adds, for each level j, blocks of ones of size 2^(depth - j). A contrast between the two sides
    of a node of level l - 1 sees the blocks of level l and below: eigenvalue sum over j >= l of 2^(depth - j), of which
    there are 2^(l - 1); the constant sees all levels.
    """
    n = 1 << depth
    beyond = [sum(2.0 ** (depth - j) for j in range(level, depth + 1)) for level in range(depth + 1)]
    counts = [1] + [1 << (level - 1) for level in range(1, depth + 1)]
    return torch.repeat_interleave(
        (torch.tensor(beyond, dtype=torch.float64) / n).sqrt(), torch.tensor(counts)
    )


__all__ = ["tree", "tree_values"]
