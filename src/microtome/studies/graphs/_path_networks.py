"""What the study of path networks measures: untrained embeddings, counts of paths, accuracy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from microtome.graphs.paths import enumerate_paths
from microtome.learn.graph_training import fit_graphs, graph_accuracy
from microtome.nn.pathnn import PathNN
from microtome.studies.graphs import _networks as n


def embeddings(build: Callable[[], PathNN], graphs: list[Any], seed: int) -> Tensor:
    """[graphs, hidden] summed node states of an untrained network."""
    batch = Batch.from_data_list(graphs)
    network = n.seeded(build, seed).double().eval()
    with torch.no_grad():
        states = network.embed(batch.x.double(), batch.edge_index)
    return torch.zeros(len(graphs), states.shape[1], dtype=torch.double).index_add(0, batch.batch, states)


def counts(pairs: list[tuple[Any, Any]], kind: str, length: int) -> int:
    """Pairs parted by how many paths of each length start at each node, as multisets."""

    def signature(graph: Any) -> list[list[int]]:
        found = enumerate_paths(graph.edge_index, graph.num_nodes, length, kind)
        table = torch.stack([torch.bincount(p.nodes[0], minlength=graph.num_nodes) for p in found], 1)
        return sorted(table.tolist())

    return sum(signature(a) != signature(b) for a, b in pairs)


def accuracy(name: str, graphs: list[Any], train: int, epochs: int, seed: int) -> float:
    """Test accuracy of one network trained on the first graphs of a random order."""
    inputs, classes = graphs[0].x.shape[1], 1 + max(int(g.y) for g in graphs)
    order = torch.randperm(len(graphs), generator=torch.Generator().manual_seed(seed)).tolist()
    given = [graphs[i] for i in order]
    build: Callable[[], nn.Module] = partial(n.GraphNetwork, n.isomorphism, inputs, 24, classes, 3)
    if name != "GIN":
        build = partial(PathNN, inputs, 24, classes, length=3, kind=name, norm=False)
    network = n.seeded(build, seed)
    fit_graphs(network, given[:train], epochs=epochs, seed=seed)
    return graph_accuracy(network, given[train:])


__all__ = ["accuracy", "counts", "embeddings"]
