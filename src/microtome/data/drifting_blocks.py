"""A block model that changes: what a class looks like turns with time, and nodes come and go."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from microtome.data.graphs import geometric
from microtome.errors import UsageError


def drifting_blocks(
    times: int = 16,
    nodes: int = 200,
    classes: int = 4,
    *,
    turn: float = 15.0,
    jump: tuple[int, float] | None = None,
    churn: float = 0.0,
    degree: float = 4.0,
    homophily: float = 0.8,
    signal: float = 2.0,
    features: int = 8,
    shares: tuple[float, float] = (0.625, 0.125),
    seed: int = 0,
) -> Any:
    """Snapshots of a block model as one batch, in the order of time.

    At time t class c has its mean at the angle 360 c / classes + turn t in the plane of the first two features. A
    node keeps its class as long as it stays; edges are drawn anew at every time.

    Args:
        times, nodes, classes: how many snapshots, nodes in each, classes.
        turn: degrees from one time to the next.
        jump: (time, degrees) from that time on everything is turned by so much more.
        churn: share of the nodes that are others at the next time, 0..1.
        degree: mean number of neighbours.
        homophily: share of edges within a class.
        signal: distance of the means from the origin, in standard deviations of the noise.
        features: dimension of x, at least 2.
        shares: of the times for training and validation, in that order; the rest are for testing.
        seed: of everything.

    Returns:
        Data with x [times * nodes, features], y, edge_index (none between snapshots), ``batch`` the time of each node,
        ``new`` whether it is another node than the one in its place before, and masks by time.

    Raises:
        UsageError: MT510 for a share outside 0..1 or fewer than 2 features.
    """
    if not (0 <= churn <= 1 and 0 <= homophily <= 1) or features < 2:
        raise UsageError(
            "MT510",
            f"churn {churn} and homophily {homophily} must lie in 0..1, features {features} be 2 or more",
        )
    geometric()
    from torch_geometric.data import Data
    from torch_geometric.utils import to_undirected

    rng = np.random.RandomState(seed)
    new = np.zeros((times, nodes), dtype=bool)
    y = np.zeros((times, nodes), dtype=np.int64)
    for t in range(times):
        new[t] = True if t == 0 else np.isin(np.arange(nodes), rng.permutation(nodes)[: round(churn * nodes)])
        y[t] = np.where(new[t], rng.permutation(nodes) % classes, y[t - 1])
    angle = turn * np.arange(times)
    if jump is not None:
        angle = angle + jump[1] * (np.arange(times) >= jump[0])
    place = np.deg2rad(angle[:, None] + 360 * y / classes)
    x = rng.randn(times, nodes, features)
    x[..., 0] += signal * np.cos(place)
    x[..., 1] += signal * np.sin(place)
    count = round(nodes * degree / 2)
    source = rng.randint(nodes, size=(times, count))
    own = np.take_along_axis(y, source, 1)
    wanted = np.where(
        rng.rand(times, count) < homophily,
        own,
        (own + rng.randint(1, classes, size=(times, count))) % classes,
    )
    order = np.argsort(y + rng.rand(times, nodes), axis=1)  # by class, at random within
    sizes = (y[:, :, None] == np.arange(classes)).sum(1)
    start = np.cumsum(sizes, 1) - sizes
    size = np.take_along_axis(sizes, wanted, 1)
    rank = np.take_along_axis(start, wanted, 1) + (rng.rand(times, count) * size).astype(np.int64)
    target = np.take_along_axis(order, rank.clip(max=nodes - 1), 1)
    shift = nodes * np.arange(times)[:, None]
    pairs = np.stack([(source + shift).ravel(), (target + shift).ravel()])
    pairs = pairs[:, pairs[0] != pairs[1]]
    ends = (round(shares[0] * times), round((shares[0] + shares[1]) * times))
    batch = torch.arange(times).repeat_interleave(nodes)
    return Data(
        x=torch.from_numpy(x.reshape(-1, features)).float(), y=torch.from_numpy(y.ravel()), batch=batch,
        edge_index=to_undirected(torch.from_numpy(pairs), num_nodes=times * nodes),
        new=torch.from_numpy(new.ravel()), num_nodes=times * nodes, train_mask=batch < ends[0],
        val_mask=(batch >= ends[0]) & (batch < ends[1]), test_mask=batch >= ends[1],
    )  # fmt: skip


__all__ = ["drifting_blocks"]
