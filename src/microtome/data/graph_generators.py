"""Graphs with planted truth: blocks with dials, rings of cliques, skip links, mines, motifs, all small graphs.

Every function gives PyTorch Geometric ``Data`` (or a list of them) and depends on nothing but its arguments.
Undirected graphs hold each edge in both directions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from microtome.data.graphs import geometric
from microtome.errors import MissingExtraError, UsageError

SKIPS = (2, 3, 4, 5, 6, 9, 11, 12, 13, 16)
"""Skip lengths of the ten classes of circular skip link graphs (Murphy et al. 2019)."""
HOUSE = ((0, 1), (1, 2), (2, 3), (3, 0), (0, 4), (1, 4))
"""A square 0..3 with a roof 4 above 0 and 1."""


def _data(edges: np.ndarray, nodes: int, **more: Any) -> Any:
    """Undirected edges [m, 2], each once, as a graph with both directions, sorted and without repeats."""
    geometric()
    from torch_geometric.data import Data
    from torch_geometric.utils import to_undirected

    pairs = torch.from_numpy(np.ascontiguousarray(edges, dtype=np.int64)).reshape(-1, 2).T
    return Data(edge_index=to_undirected(pairs, num_nodes=nodes), num_nodes=nodes, **more)


def _shuffled_masks(nodes: int, shares: tuple[float, float], rng: np.random.RandomState) -> dict[str, Tensor]:
    order = torch.from_numpy(rng.permutation(nodes))
    first, second = round(shares[0] * nodes), round((shares[0] + shares[1]) * nodes)
    found = {}
    for name, part in (("train", order[:first]), ("val", order[first:second]), ("test", order[second:])):
        mask = torch.zeros(nodes, dtype=torch.bool)
        mask[part] = True
        found[f"{name}_mask"] = mask
    return found


def stochastic_blocks(
    nodes: int = 1000,
    classes: int = 4,
    *,
    degree: float = 10.0,
    homophily: float = 0.8,
    pattern: float = 0.0,
    signal: float = 1.0,
    features: int = 16,
    label_correlation: float = 1.0,
    shares: tuple[float, float] = (0.5, 0.25),
    seed: int = 0,
) -> Any:
    """A contextual stochastic block model with a dial for each of structure, features and labels.

    Nodes belong to equal latent blocks. Of the edges a share ``homophily`` joins nodes of one block; of the rest a
    share ``pattern`` joins block c with the next one, c + 1 (mod classes), the others any two different blocks.

    Args:
        nodes, classes: how many.
        degree: mean number of neighbours.
        homophily: share of edges within a block, 0..1; ``1 / classes`` with ``pattern=0`` says nothing of the blocks.
        pattern: share of the edges between blocks that follow the ring of blocks, 0..1.
        signal: distance of each block's mean from the origin, in standard deviations of the noise.
        features: dimension of x; the means are orthonormal (at least ``classes``).
        label_correlation: a node's label is its block with this probability, else any class; 1 is exact.
        shares: of training and validation nodes; the rest are test nodes.
        seed: of everything.

    Returns:
        Data with x [nodes, features], y [nodes], block [nodes], edge_index and the masks.

    Raises:
        UsageError: MT445 for a dial outside its range.
    """
    for name, value in (
        ("homophily", homophily),
        ("pattern", pattern),
        ("label_correlation", label_correlation),
    ):
        if not 0 <= value <= 1:
            raise UsageError("MT445", f"{name}={value} is not in 0..1")
    if features < classes or classes < 2:
        raise UsageError("MT445", f"{classes} classes need at least 2 and as many features, got {features}")
    rng = np.random.RandomState(seed)
    block = np.arange(nodes) % classes
    rng.shuffle(block)
    members = [np.flatnonzero(block == c) for c in range(classes)]
    wanted = round(nodes * degree / 2)
    a = rng.randint(nodes, size=2 * wanted)
    draw, follow = rng.rand(2 * wanted), rng.rand(2 * wanted)
    other = (block[a] + rng.randint(1, classes, size=2 * wanted)) % classes
    ring = (block[a] + np.where(rng.rand(2 * wanted) < 0.5, 1, -1)) % classes
    target = np.where(draw < homophily, block[a], np.where(follow < pattern, ring, other))
    sizes = np.array([len(m) for m in members])
    place = (rng.rand(2 * wanted) * sizes[target]).astype(np.int64)
    table = np.zeros((classes, sizes.max()), dtype=np.int64)
    for c, m in enumerate(members):
        table[c, : len(m)] = m
    pairs = np.sort(np.stack([a, table[target, place]], 1), axis=1)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    _, first = np.unique(pairs[:, 0] * nodes + pairs[:, 1], return_index=True)
    pairs = pairs[np.sort(first)[:wanted]]
    x = rng.randn(nodes, features)
    x[np.arange(nodes), block] += signal
    noisy = rng.rand(nodes) >= label_correlation
    y = np.where(noisy, rng.randint(classes, size=nodes), block)
    return _data(
        pairs, nodes, x=torch.from_numpy(x).float(), y=torch.from_numpy(y), block=torch.from_numpy(block),
        **_shuffled_masks(nodes, shares, rng),
    )  # fmt: skip


def add_edges_by_pattern(
    data: Any, count: int, *, targets: Tensor | None = None, noise: float = 0.0, seed: int = 0
) -> Any:
    """Add edges whose other end is drawn from a fixed distribution over classes (Ma, Liu, Shah & Tang 2022).

    Args:
        data: a graph with y [nodes]; not changed.
        count: undirected edges to add.
        targets: [k, k] row c is the distribution of the other end's class; the next class, c + 1 mod k, by default.
        noise: with this probability the other end's class is uniform over all classes.
        seed: of the draws.
    """
    rng = np.random.RandomState(seed)
    y = data.y.numpy()
    k = int(y.max()) + 1
    law = np.roll(np.eye(k), 1, axis=1) if targets is None else targets.double().numpy()
    members = [np.flatnonzero(y == c) for c in range(k)]
    a = rng.randint(len(y), size=count)
    drawn = (rng.rand(count)[:, None] > law[y[a]].cumsum(1)).sum(1).clip(0, k - 1)
    drawn = np.where(rng.rand(count) < noise, rng.randint(k, size=count), drawn)
    place = rng.rand(count)
    b = np.empty(count, dtype=np.int64)
    for c, own in enumerate(members):
        chosen = drawn == c
        b[chosen] = own[(place[chosen] * len(own)).astype(np.int64)]
    changed = data.clone()
    both = np.concatenate([np.stack([a, b]), np.stack([b, a])], axis=1)
    changed.edge_index = torch.cat([data.edge_index, torch.from_numpy(both)], 1)
    return changed


def plant_duplicates(data: Any, share: float, *, seed: int = 0) -> Any:
    """Make ``share`` of the nodes copies of others: same neighbours and same label, their own features.

    ``data.twin_of`` [nodes] is the node each one copies, -1 for the others. A copied node keeps its split.
    """
    rng = np.random.RandomState(seed)
    nodes = data.num_nodes
    order = rng.permutation(nodes)
    count = round(share * nodes)
    copies = order[:count]
    originals = order[count:][rng.randint(nodes - count, size=count)] if count else copies
    twin = np.full(nodes, -1)
    twin[copies] = originals
    source, target = data.edge_index.numpy()
    kept = (twin[source] < 0) & (twin[target] < 0)  # edges between originals; the copies get theirs
    source, target = source[kept], target[kept]
    start = np.argsort(target, kind="stable")
    counts = np.bincount(target, minlength=nodes)
    ends = counts.cumsum()
    rows = [source[start[ends[o] - counts[o] : ends[o]]] for o in originals]
    more = np.concatenate(
        [np.stack([r, np.full(len(r), c)]) for r, c in zip(rows, copies, strict=True)]
        or [np.zeros((2, 0), int)],
        axis=1,
    )
    changed = data.clone()
    # Directed into the copy only, or the originals' neighbourhoods would change with every copy.
    changed.edge_index = torch.from_numpy(np.concatenate([np.stack([source, target]), more], 1))
    changed.y = data.y.clone()
    changed.y[torch.from_numpy(copies)] = data.y[torch.from_numpy(originals)]
    changed.twin_of = torch.from_numpy(twin)
    return changed


def ring_of_cliques(cliques: int = 8, size: int = 5) -> Any:
    """``cliques`` complete graphs of ``size`` nodes, one edge from each to the next around a ring; y is the clique."""
    if cliques < 3 or size < 2:
        raise UsageError("MT445", f"a ring needs 3 cliques of 2 nodes or more, got {cliques} of {size}")
    i, j = np.triu_indices(size, 1)
    start = np.arange(cliques)[:, None] * size
    inside = np.stack([(start + i).ravel(), (start + j).ravel()], 1)
    ring = np.stack([np.arange(cliques) * size, (np.arange(cliques) + 1) % cliques * size + 1], 1)
    y = torch.arange(cliques).repeat_interleave(size)
    return _data(np.concatenate([inside, ring]), cliques * size, y=y)


def barbell(size: int = 10, bridge: int = 0) -> Any:
    """Two complete graphs of ``size`` nodes joined by a path with ``bridge`` nodes between; y tells the two ends."""
    i, j = np.triu_indices(size, 1)
    path = np.arange(size - 1, size + bridge + 1)
    pairs = [np.stack([i, j], 1), np.stack([i, j], 1) + size + bridge, np.stack([path[:-1], path[1:]], 1)]
    nodes = 2 * size + bridge
    return _data(np.concatenate(pairs), nodes, y=(torch.arange(nodes) >= size + bridge).long())


def circular_skip_link(skip: int, nodes: int = 41) -> Any:
    """A ring of ``nodes`` nodes, each also joined to the ones ``skip`` away: 4-regular, so 1-WL sees no difference."""
    i = np.arange(nodes)
    pairs = np.concatenate([np.stack([i, (i + 1) % nodes], 1), np.stack([i, (i + skip) % nodes], 1)])
    return _data(pairs, nodes)


def circular_skip_links(copies: int = 15, nodes: int = 41, seed: int = 0) -> list[Any]:
    """The CSL set: ten classes by skip length, ``copies`` random relabelings of each; y [1] is the class."""
    rng = np.random.RandomState(seed)
    found = []
    for label, skip in enumerate(SKIPS):
        for _ in range(copies):
            graph = circular_skip_link(skip, nodes)
            order = torch.from_numpy(rng.permutation(nodes))
            graph.edge_index = order[graph.edge_index]
            graph.y, graph.x = torch.tensor([label]), torch.ones(nodes, 1)
            found.append(graph)
    return found


def minesweeper(size: int = 100, *, mines: float = 0.2, hidden: float = 0.5, seed: int = 0) -> Any:
    """A grid whose cells touch their eight neighbours; some are mines, and some hide how many mines they touch.

    As in Platonov et al. 2023: x [nodes, 7] is one-hot over (hidden, 0, 1, 2, 3, 4, 5 or more neighbouring mines);
    y is 1 for a mine; exactly a share ``mines`` are mines and a share ``hidden`` are hidden; half are for training.
    """
    rng = np.random.RandomState(seed)
    nodes = size * size
    cell = np.arange(nodes).reshape(size, size)
    pairs = np.concatenate(
        [
            np.stack([a.ravel(), b.ravel()], 1)
            for a, b in (
                (cell[:, :-1], cell[:, 1:]), (cell[:-1], cell[1:]),
                (cell[:-1, :-1], cell[1:, 1:]), (cell[:-1, 1:], cell[1:, :-1]),
            )
        ]
    )  # fmt: skip
    y = np.zeros(nodes, dtype=np.int64)
    y[rng.permutation(nodes)[: round(mines * nodes)]] = 1
    unseen = np.zeros(nodes, dtype=bool)
    unseen[rng.permutation(nodes)[: round(hidden * nodes)]] = True
    graph = _data(pairs, nodes, y=torch.from_numpy(y), **_shuffled_masks(nodes, (0.5, 0.25), rng))
    graph.x = mine_features(graph.edge_index, graph.y, torch.from_numpy(unseen))
    return graph


def mine_features(edge_index: Tensor, y: Tensor, hidden: Tensor) -> Tensor:
    """[nodes, 7] what a player sees: one-hot over (hidden, 0, 1, 2, 3, 4, 5 or more mines among the neighbours)."""
    touching = torch.zeros(len(y), dtype=torch.long).index_add_(0, edge_index[1], y[edge_index[0]])
    column = torch.where(hidden, torch.zeros_like(touching), touching.clamp_max(5) + 1)
    return torch.nn.functional.one_hot(column, 7).float()


def houses_on_trunk(
    trunk: int = 300, houses: int = 80, *, attach: int = 5, noise: float = 0.1, seed: int = 0
) -> Any:
    """BA-Shapes: houses hung on a Barabasi-Albert graph, and some random edges (Ying et al. 2019).

    Returns:
        Data with x = 1 [nodes, 1], y (0 trunk, 1 middle, 2 bottom, 3 top of a house), ``edge_truth`` [edges] 1 for the
        edges of a house, ``motif`` [nodes] the number of its house or -1, and masks.
    """
    rng = np.random.RandomState(seed)
    base = _networkx().barabasi_albert_graph(trunk, attach, seed=seed)
    pairs = [np.array(base.edges)]
    inside, y, motif = [], [0] * trunk, [-1] * trunk
    for number, root in enumerate(
        rng.permutation(trunk)[:houses] if houses <= trunk else rng.randint(trunk, size=houses)
    ):
        start = trunk + 5 * number
        inside.append(np.array(HOUSE) + start)
        pairs.append(np.array([[root, start + 2]]))
        y += [1, 1, 2, 2, 3]
        motif += [number] * 5
    nodes = trunk + 5 * houses
    planted = np.concatenate(inside)
    extra = rng.randint(nodes, size=(round(noise * nodes), 2))
    taken = {tuple(sorted(p)) for p in np.concatenate([*pairs, planted]).tolist()}
    extra = np.array([p for p in extra.tolist() if p[0] != p[1] and tuple(sorted(p)) not in taken]).reshape(
        -1, 2
    )
    graph = _data(
        np.concatenate([*pairs, planted, extra]), nodes, x=torch.ones(nodes, 1), y=torch.tensor(y),
        motif=torch.tensor(motif), **_shuffled_masks(nodes, (0.8, 0.1), rng),
    )  # fmt: skip
    graph.edge_truth = _among(graph.edge_index, planted, nodes)
    return graph


def two_motifs(count: int = 200, trunk: int = 20, *, attach: int = 1, seed: int = 0) -> list[Any]:
    """BA-2Motifs: trees of a Barabasi-Albert graph with a house (y = 0) or a ring of five (y = 1) hung on each.

    Each graph has x = 1 / 10 [nodes, 10], y [1] and ``edge_truth`` [edges] 1 for the motif's edges (Luo et al. 2020).
    """
    rng = np.random.RandomState(seed)
    ring = np.array([(0, 1), (1, 2), (2, 3), (3, 4), (4, 0)])
    found = []
    for i in range(count):
        base = np.array(
            _networkx().barabasi_albert_graph(trunk, attach, seed=int(rng.randint(1 << 31))).edges
        )
        planted = (ring if i % 2 else np.array(HOUSE)) + trunk
        joint = np.array([[rng.randint(trunk), trunk + rng.randint(5)]])
        nodes = trunk + 5
        graph = _data(
            np.concatenate([base, planted, joint]),
            nodes,
            x=torch.full((nodes, 10), 0.1),
            y=torch.tensor([i % 2]),
        )
        graph.edge_truth = _among(graph.edge_index, planted, nodes)
        found.append(graph)
    return found


def _among(edge_index: Tensor, planted: np.ndarray, nodes: int) -> Tensor:
    keys = torch.from_numpy(np.concatenate([planted @ [nodes, 1], planted @ [1, nodes]]))
    return torch.isin(edge_index[0] * nodes + edge_index[1], keys).float()


def small_graphs(nodes: int = 7) -> list[Any]:
    """Every graph of 1 to ``nodes`` (at most 7) nodes, one of each up to isomorphism; x = 1 [n, 1] (graph atlas).

    Raises:
        UsageError: MT445 for more than 7 nodes.
        MissingExtraError: MT110 without networkx.
    """
    if not 1 <= nodes <= 7:
        raise UsageError("MT445", f"the atlas has graphs of 1 to 7 nodes, not {nodes}")
    found = []
    for graph in _networkx().graph_atlas_g():
        n = graph.number_of_nodes()
        if 1 <= n <= nodes:
            found.append(_data(np.array(graph.edges, dtype=np.int64).reshape(-1, 2), n, x=torch.ones(n, 1)))
    return found


def _networkx() -> Any:
    try:
        import networkx
    except ImportError as error:
        raise MissingExtraError(
            "networkx", "graphs", "planted motifs and the atlas of small graphs"
        ) from error
    return networkx


__all__ = [
    "HOUSE", "SKIPS", "add_edges_by_pattern", "barbell", "circular_skip_link", "circular_skip_links",
    "houses_on_trunk", "mine_features", "minesweeper", "plant_duplicates", "ring_of_cliques", "small_graphs",
    "stochastic_blocks", "two_motifs",
]  # fmt: skip
