"""Graphs of many kinds whose answers are those of classical algorithms (Corso et al. 2020).

Each graph has two features a node, whether it is the source and a uniform number u, and six targets. Of a node: hops
to the source, eccentricity, and (D - A) u; of the graph: whether it is connected, its diameter, and the largest
absolute eigenvalue of A. A node that cannot be reached counts as 0 hops away, as in the paper's code, so eccentricity
and diameter are those within components.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from microtome.data.graphs import geometric
from microtome.errors import UsageError, nearest

KINDS = {
    "random": 0.2, "preferential": 0.2, "grid": 0.05, "caveman": 0.05, "tree": 0.15,
    "ladder": 0.05, "line": 0.05, "star": 0.05, "caterpillar": 0.1, "lobster": 0.1,
}  # fmt: skip
"""Kinds of graphs and the share of each."""
NODE_TASKS = ("distance", "eccentricity", "laplacian")
GRAPH_TASKS = ("connected", "diameter", "spectral radius")


def all_distances(adjacency: Tensor) -> Tensor:
    """[graphs, n, n] hops between all nodes, -1 where no path leads; adjacency [graphs, n, n] may be padded."""
    nodes = adjacency.shape[-1]
    frontier = torch.eye(nodes, dtype=torch.float32).expand(adjacency.shape).contiguous()
    found = torch.where(frontier > 0, 0, -1)
    step = adjacency.float()
    for hop in range(1, nodes):
        new = (frontier @ step > 0) & (found < 0)
        if not bool(new.any()):
            break
        found[new] = hop
        frontier = new.float()
    return found


def targets(adjacency: Tensor, sizes: Tensor, source: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Node targets [graphs, n, 3] and graph targets [graphs, 3] in the order of NODE_TASKS and GRAPH_TASKS.

    Args:
        adjacency: [graphs, n, n] symmetric, zero beyond each graph's nodes.
        sizes: [graphs] nodes.
        source: [graphs] which node.
        values: [graphs, n] one number a node.
    """
    hops = all_distances(adjacency)
    reached = hops.clamp_min(0).double()
    graphs = torch.arange(len(adjacency))
    dense = adjacency.double()
    laplacian = dense.sum(2) * values - (dense @ values[..., None])[..., 0]
    eccentricity = reached.amax(2)
    connected = (hops[graphs, 0] >= 0).sum(1) == sizes  # padding is reached from nowhere
    radius = torch.linalg.eigvalsh(dense).abs().amax(1)
    return (
        torch.stack([reached[graphs, source], eccentricity, laplacian], 2),
        torch.stack([connected.double(), eccentricity.amax(1), radius], 1),
    )


def algorithm_graphs(
    count: int = 640,
    nodes: tuple[int, int] = (15, 24),
    *,
    kinds: Sequence[str] = (),
    toggled: float = 0.1,
    seed: int = 0,
) -> list[Any]:
    """Graphs with x [n, 2], node_y [n, 3], graph_y [1, 3] and kind; which depends on the arguments alone.

    Of every graph a share ``toggled`` of the edges is removed and as many, on average, are added between other nodes;
    a node left without edges gets one of its own back.

    Args:
        count: how many.
        nodes: fewest and most nodes, drawn uniformly.
        kinds: of :data:`KINDS`, in equal shares; all in their own shares by default.
        toggled: share of the edges, 0..1.
        seed: of everything.

    Raises:
        UsageError: MT452 for an unknown kind or sizes and shares outside their range.
    """
    geometric()
    from torch_geometric.data import Data
    from torch_geometric.utils import dense_to_sparse

    unknown = [k for k in kinds if k not in KINDS]
    if unknown:
        raise UsageError(
            "MT452", f"no kind of graph is called '{unknown[0]}'", fix=nearest(unknown[0], KINDS)
        )
    if not 4 <= nodes[0] <= nodes[1] or not 0 <= toggled <= 1 or count < 1:
        raise UsageError(
            "MT452", f"count={count}, nodes={nodes}, toggled={toggled}: need 1, 4 <= a <= b, 0..1"
        )
    rng = np.random.default_rng(seed)
    names = list(kinds or KINDS)
    shares = None if kinds else list(KINDS.values())
    drawn = rng.choice(len(names), count, p=shares)
    sizes = rng.integers(nodes[0], nodes[1] + 1, count)
    adjacency = np.zeros((count, nodes[1], nodes[1]), dtype=bool)
    for i, (kind, size) in enumerate(zip(drawn, sizes, strict=True)):
        adjacency[i, :size, :size] = _toggled(_MAKERS[names[kind]](int(size), rng), toggled, rng)
    source, values = rng.integers(0, sizes), rng.random((count, nodes[1]))
    values[np.arange(nodes[1]) >= sizes[:, None]] = 0
    dense = torch.from_numpy(adjacency)
    node_y, graph_y = targets(*map(torch.from_numpy, (adjacency, sizes, source, values)))
    found = []
    for i, size in enumerate(sizes.tolist()):
        x = torch.stack([torch.arange(size) == int(source[i]), torch.from_numpy(values[i, :size])], 1).float()
        edge_index = dense_to_sparse(dense[i, :size, :size].float())[0]
        found.append(
            Data(
                x=x, edge_index=edge_index, node_y=node_y[i, :size].float(), graph_y=graph_y[i : i + 1].float(),
                kind=names[int(drawn[i])],
            )
        )  # fmt: skip
    return found


def scales(graphs: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """The largest absolute value of each node target [3] and graph target [3], by which the paper divides."""
    node = torch.cat([g.node_y for g in graphs]).abs().amax(0)
    graph = torch.cat([g.graph_y for g in graphs]).abs().amax(0)
    return node.clamp_min(1e-12), graph.clamp_min(1e-12)


def _joined(nodes: int, pairs: np.ndarray) -> np.ndarray:
    found = np.zeros((nodes, nodes), dtype=bool)
    found[pairs[:, 0], pairs[:, 1]] = found[pairs[:, 1], pairs[:, 0]] = True
    np.fill_diagonal(found, False)
    return found


def _random(nodes: int, rng: np.random.Generator) -> np.ndarray:
    upper = np.triu(rng.random((nodes, nodes)) < rng.random(), 1)
    return upper | upper.T


def _preferential(nodes: int, rng: np.random.Generator, attach: int = 0) -> np.ndarray:
    """Each new node joins ``attach`` (1 to nodes - 1, drawn) old ones, drawn without replacement by degree."""
    attach = attach or int(rng.integers(1, nodes))
    found = np.zeros((nodes, nodes), dtype=bool)
    for new in range(attach, nodes):
        weight = np.maximum(found[:new, :new].sum(1), new == attach)  # the first new node joins all before it
        waits = rng.exponential(size=new) / np.maximum(weight, 1e-12)
        chosen = np.argsort(waits)[:attach]
        found[new, chosen] = found[chosen, new] = True
    return found


def _tree(nodes: int, rng: np.random.Generator) -> np.ndarray:
    return _preferential(nodes, rng, 1)


def _squarest(nodes: int) -> int:
    return max(i for i in range(1, math.isqrt(nodes) + 1) if nodes % i == 0)


def _grid(nodes: int, rng: np.random.Generator) -> np.ndarray:
    cell = np.arange(nodes).reshape(_squarest(nodes), -1)
    across = np.stack([cell[:, :-1].ravel(), cell[:, 1:].ravel()], 1)
    return _joined(nodes, np.concatenate([across, np.stack([cell[:-1].ravel(), cell[1:].ravel()], 1)]))


def _caveman(nodes: int, rng: np.random.Generator) -> np.ndarray:
    clique = np.arange(nodes) // (nodes // _squarest(nodes))
    found: np.ndarray = clique[:, None] == clique
    np.fill_diagonal(found, False)
    return found


def _ladder(nodes: int, rng: np.random.Generator) -> np.ndarray:
    half = nodes // 2
    side = np.stack([np.arange(half - 1), np.arange(1, half)], 1)
    rungs = np.stack([np.arange(half), np.arange(half) + half], 1)
    odd = np.array([[0, nodes - 1]])[: nodes % 2]
    return _joined(nodes, np.concatenate([side, side + half, rungs, odd]))


def _line(nodes: int, rng: np.random.Generator) -> np.ndarray:
    return _joined(nodes, np.stack([np.arange(nodes - 1), np.arange(1, nodes)], 1))


def _star(nodes: int, rng: np.random.Generator) -> np.ndarray:
    return _joined(nodes, np.stack([np.zeros(nodes - 1, dtype=int), np.arange(1, nodes)], 1))


def _legs(nodes: int, back: int, first: int, rng: np.random.Generator) -> np.ndarray:
    """A backbone of ``back`` nodes, nodes up to ``first`` hung on it, the rest hung on those."""
    spine = np.stack([np.arange(back - 1), np.arange(1, back)], 1)
    on_spine = np.stack([np.arange(back, first), rng.integers(0, back, first - back)], 1)
    rest = np.arange(first, nodes)
    on_legs = np.stack([rest, rng.integers(back, max(first, back + 1), len(rest))], 1)
    return _joined(nodes, np.concatenate([spine, on_spine, on_legs]))


def _caterpillar(nodes: int, rng: np.random.Generator) -> np.ndarray:
    return _legs(nodes, int(rng.integers(1, nodes)), nodes, rng)


def _lobster(nodes: int, rng: np.random.Generator) -> np.ndarray:
    back = int(rng.integers(1, nodes))
    return _legs(nodes, back, int(rng.integers(back + 1, nodes + 1)), rng)


_MAKERS = {
    "random": _random, "preferential": _preferential, "grid": _grid, "caveman": _caveman, "tree": _tree,
    "ladder": _ladder, "line": _line, "star": _star, "caterpillar": _caterpillar, "lobster": _lobster,
}  # fmt: skip


def _toggled(adjacency: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    nodes = len(adjacency)
    order = rng.permutation(nodes)
    given = adjacency[order][:, order]
    there = int(given.sum()) // 2
    absent = nodes * (nodes - 1) // 2 - there
    lose, gain = share * min(1, absent / max(there, 1)), share * min(1, there / max(absent, 1))
    draw = np.triu(rng.random((nodes, nodes)), 1)
    draw = draw + draw.T
    found = np.where(given, draw >= lose, draw < gain)
    np.fill_diagonal(found, False)
    lonely = ~found.any(1)
    own = np.where(
        given.any(1), np.argmax(given * rng.random((nodes, nodes)), 1), (np.arange(nodes) + 1) % nodes
    )
    pairs = np.stack([np.flatnonzero(lonely), own[lonely]], 1)
    return found | _joined(nodes, pairs)


__all__ = ["GRAPH_TASKS", "KINDS", "NODE_TASKS", "algorithm_graphs", "all_distances", "scales", "targets"]
