"""One graph of many relations, each of which joins classes in its own way: who asks for the relation can tell them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from microtome.data.graphs import geometric
from microtome.errors import UsageError


def typed_relations(
    nodes: int = 600,
    classes: int = 4,
    *,
    relations: int = 6,
    alike: float = 0.5,
    degree: float = 1.0,
    purity: float = 0.7,
    signal: float = 0.8,
    features: int = 16,
    shares: tuple[float, float] = (0.1, 0.2),
    seed: int = 0,
) -> Any:
    """Entities of equal classes; relation r leads from class c to class c + shift_r (mod classes).

    Args:
        nodes, classes: how many.
        relations: how many. Of them a share ``alike`` (rounded) has shift 0, the rest take 1, 2, ... in turn: with 1
            all join like with like, and then there is nothing in knowing the relation.
        alike: share, 0..1.
        degree: edges of each relation that leave a node, on average.
        purity: an edge keeps to its relation's shift with this probability, else it leads anywhere.
        signal: distance of each class's mean from the origin, in standard deviations of the noise.
        features: dimension of x, at least ``classes``.
        shares: of training and validation nodes; the rest are test nodes.
        seed: of everything.

    Returns:
        Data with x [nodes, features], y [nodes], ``shift`` [relations], masks, and the edges in both directions:
        edge_index [2, m], edge_type [m], backwards those of relation r are of type r + relations.

    Raises:
        UsageError: MT514 for a dial outside its range.
    """
    if not 0 <= alike <= 1 or not 0 <= purity <= 1 or not 2 <= classes <= features or relations < 1:
        raise UsageError(
            "MT514",
            f"alike={alike}, purity={purity}, classes={classes}, features={features}, relations={relations} make no "
            "graph",
            fix="shares in 0..1, a feature a class, two classes and a relation or more",
        )
    geometric()
    from torch_geometric.data import Data

    rng = np.random.RandomState(seed)
    y = rng.permutation(np.arange(nodes) % classes)
    same = round(alike * relations)
    shift = np.concatenate([np.zeros(same, int), 1 + np.arange(relations - same) % (classes - 1)])
    count = round(degree * nodes)
    kind = np.repeat(np.arange(relations), count)
    source = rng.randint(nodes, size=len(kind))
    wanted = (y[source] + shift[kind]) % classes
    order = np.argsort(y, kind="stable")
    sizes = np.bincount(y, minlength=classes)
    first = sizes.cumsum() - sizes
    place = (rng.rand(len(kind)) * sizes[wanted]).astype(int)
    kept = rng.rand(len(kind)) < purity
    target = np.where(kept, order[first[wanted] + place], rng.randint(nodes, size=len(kind)))
    x = rng.randn(nodes, features)
    x[np.arange(nodes), y] += signal
    pairs = np.stack([source, target])
    made = Data(
        x=torch.from_numpy(x).float(),
        y=torch.from_numpy(y),
        edge_index=torch.from_numpy(np.concatenate([pairs, pairs[::-1]], 1)),
        edge_type=torch.from_numpy(np.concatenate([kind, kind + relations])),
        shift=torch.from_numpy(shift),
        num_nodes=nodes,
    )
    drawn = torch.from_numpy(rng.permutation(nodes))
    one, two = round(shares[0] * nodes), round((shares[0] + shares[1]) * nodes)
    for name, part in (("train", drawn[:one]), ("val", drawn[one:two]), ("test", drawn[two:])):
        made[f"{name}_mask"] = torch.zeros(nodes, dtype=torch.bool).index_fill_(0, part, True)
    return made


__all__ = ["typed_relations"]
