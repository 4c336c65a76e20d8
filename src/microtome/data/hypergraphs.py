"""Hypergraphs with planted classes, and the ordinary graph that joins all nodes of a hyperedge."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from microtome.data.graphs import geometric
from microtome.errors import UsageError


def planted_hypergraph(
    nodes: int = 600,
    classes: int = 4,
    *,
    hyperedges: int = 300,
    size: int = 5,
    purity: float = 0.8,
    signal: float = 1.0,
    features: int = 16,
    shares: tuple[float, float] = (0.1, 0.2),
    seed: int = 0,
) -> Any:
    """Hyperedges that prefer one class each, and features that tell it vaguely.

    Args:
        nodes, classes: how many; classes are of equal size.
        hyperedges: how many; each has a class.
        size: nodes of each hyperedge, all different.
        purity: each of them is drawn from the hyperedge's class with this probability, else from all nodes.
        signal: distance of each class's mean from the origin, in standard deviations of the noise.
        features: dimension of x, at least ``classes``.
        shares: of training and validation nodes; the rest are test nodes.
        seed: of everything.

    Returns:
        Data with x [nodes, features], y [nodes], masks and ``edge_index`` [2, hyperedges * size] (node, hyperedge), as
        PyTorch Geometric's ``HyperGraphData`` and ``HypergraphConv`` have it.

    Raises:
        UsageError: MT505 for numbers that do not fit.
    """
    if not 0 <= purity <= 1 or features < classes or size < 2 or size > nodes // classes:
        raise UsageError(
            "MT505",
            f"purity={purity}, features={features}, size={size} do not fit {nodes} nodes of {classes} classes",
            fix="a purity in 0..1, a feature a class, hyperedges no larger than a class",
        )
    geometric()
    from torch_geometric.data import Data

    rng = np.random.RandomState(seed)
    y = rng.permutation(np.arange(nodes) % classes)
    own = rng.randint(classes, size=hyperedges)
    # The smallest of random keys: a draw without repeats. Whoever is of the class has keys that are smaller on average.
    odds = np.where(y[None] == own[:, None], purity * classes + 1 - purity, 1 - purity)
    keys = rng.exponential(size=(hyperedges, nodes)) / np.maximum(odds, 1e-12)
    chosen = np.argpartition(keys, size - 1, axis=1)[:, :size]
    x = rng.randn(nodes, features)
    x[np.arange(nodes), y] += signal
    index = np.stack([chosen.ravel(), np.repeat(np.arange(hyperedges), size)])
    made = Data(
        x=torch.from_numpy(x).float(),
        y=torch.from_numpy(y),
        edge_index=torch.from_numpy(index),
        num_nodes=nodes,
    )
    order = torch.from_numpy(rng.permutation(nodes))
    first, second = round(shares[0] * nodes), round((shares[0] + shares[1]) * nodes)
    for name, part in (("train", order[:first]), ("val", order[first:second]), ("test", order[second:])):
        made[f"{name}_mask"] = torch.zeros(nodes, dtype=torch.bool).index_fill_(0, part, True)
    return made


def clique_graph(hyperedge_index: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Edges [2, m] in both directions of all pairs that share a hyperedge, and weights [m]: how many they share."""
    import scipy.sparse

    node, edge = hyperedge_index.numpy()
    shape = (nodes, int(edge.max()) + 1 if len(edge) else 0)
    held = scipy.sparse.coo_array((np.ones(len(node)), (node, edge)), shape=shape).tocsr()
    pairs = (held @ held.T).tocoo()
    kept = pairs.row != pairs.col
    edges = np.stack([pairs.row[kept], pairs.col[kept]]).astype(np.int64)
    return torch.from_numpy(edges), torch.from_numpy(pairs.data[kept]).float()


__all__ = ["clique_graph", "planted_hypergraph"]
