"""Pairs of graphs that colour refinement cannot part, found or known, which studies of expressiveness share."""

from __future__ import annotations

import itertools
from typing import Any

import networkx
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from microtome.data.graph_generators import circular_skip_link, small_graphs
from microtome.graphs.refinement import weisfeiler_leman


def colliding(graphs: list[Any]) -> list[tuple[Any, Any]]:
    """Pairs of a list whose refined colours agree; computed."""
    batch = Batch.from_data_list(graphs)
    sizes = torch.bincount(batch.batch)
    colours = weisfeiler_leman(batch.edge_index, batch.batch, len(graphs), rounds=int(sizes.max()))[1]
    together = (colours[:, None] == colours).triu(1).nonzero()
    return [(graphs[i], graphs[j]) for i, j in together.tolist()]


def atlas_pairs(nodes: int = 7) -> list[tuple[Any, Any]]:
    """The pairs among all graphs of up to ``nodes`` nodes that colour refinement joins."""
    return colliding(small_graphs(nodes))


def _graph(dense: Tensor) -> Any:
    return Data(x=torch.ones(len(dense), 1), edge_index=dense.nonzero().T.contiguous(), num_nodes=len(dense))


def rook_and_shrikhande() -> tuple[Any, Any]:
    """The two graphs of 16 nodes that are strongly regular (16, 6, 2, 2); of equal colours under 3-WL (2-FWL)."""
    row, column = torch.arange(16) // 4, torch.arange(16) % 4
    rook = (row[:, None] == row) ^ (column[:, None] == column)
    step = torch.stack([(row[:, None] - row) % 4, (column[:, None] - column) % 4], 2)
    moves = torch.tensor([(0, 1), (0, 3), (1, 0), (3, 0), (1, 1), (3, 3)])
    shrikhande = (step[:, :, None] == moves).all(3).any(2)
    return _graph(rook), _graph(shrikhande)


def skip_link_pairs(nodes: int = 41, skips: tuple[int, ...] = (2, 3, 4, 5)) -> list[tuple[Any, Any]]:
    """Pairs of circular skip link graphs of different skips."""
    made = [circular_skip_link(s, nodes) for s in skips]
    for graph in made:
        graph.x = torch.ones(nodes, 1)
    return list(itertools.combinations(made, 2))


def relabelled(graph: Any, seed: int) -> Any:
    """The same graph with its nodes in another order."""
    order = torch.randperm(graph.num_nodes, generator=torch.Generator().manual_seed(seed))
    x = torch.empty_like(graph.x)
    x[order] = graph.x
    edges = order[graph.edge_index]
    shuffle = torch.randperm(edges.shape[1], generator=torch.Generator().manual_seed(seed + 1))
    return Data(x=x, edge_index=edges[:, shuffle], num_nodes=len(x))


def _regular(degree: int, nodes: int, seed: int) -> Any:
    edges = torch.tensor(list(networkx.random_regular_graph(degree, nodes, seed=seed).edges)).T
    edges = torch.cat([edges, edges.flip(0)], 1)
    return Data(x=torch.ones(nodes, 1), edge_index=edges, num_nodes=nodes)


def regular_graphs(count: int, degree: int, nodes: int, seed: int) -> list[Any]:
    """Random regular graphs, in which all that message passing can compute is constant."""
    return [_regular(degree, nodes, 100_000 * seed + i) for i in range(count)]


def triangles_or_not(count: int, seed: int) -> list[Any]:
    """3-regular graphs of 12 nodes; y [1] tells whether there is a triangle, in equal shares, one after the other."""
    found: list[list[Any]] = [[], []]
    for draw in itertools.count(100_000 * seed):
        graph = _regular(3, 12, draw)
        dense = torch.zeros(12, 12)
        dense[graph.edge_index[0], graph.edge_index[1]] = 1
        label = int((dense @ dense * dense).sum() > 0)
        if len(found[label]) < count // 2:
            graph.y = torch.tensor([label])
            found[label].append(graph)
        if len(found[0]) == len(found[1]) == count // 2:
            break
    return [g for both in zip(*found, strict=True) for g in both]


def apart(first: Tensor, second: Tensor) -> Tensor:
    """[pairs] largest difference of two embeddings [pairs, d], relative to the larger one's largest entry."""
    scale = torch.maximum(first.abs().amax(1), second.abs().amax(1)).clamp_min(1e-300)
    return (first - second).abs().amax(1) / scale


__all__ = [
    "apart", "atlas_pairs", "colliding", "regular_graphs", "relabelled", "rook_and_shrikhande", "skip_link_pairs",
    "triangles_or_not",
]  # fmt: skip
