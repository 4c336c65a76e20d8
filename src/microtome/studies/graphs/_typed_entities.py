"""Classes of entities by typed relations: R-GCN beside networks of as many parameters that do not know the types."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import GCNConv, RGCNConv

from microtome.data.typed_relations import typed_relations
from microtome.learn.gnn_benchmark import parameters, width_for
from microtome.learn.graph_training import fit_nodes
from microtome.studies.graphs import _networks as n

TYPED, SHUFFLED, BLIND, FEATURES = "R-GCN", "R-GCN, types shuffled", "GCN of as many parameters", "perceptron"
ALIKE = (0.0, 0.5, 1.0)
"""Shares of the relations that join like with like."""
LABELS = (0.25, 0.25)
"""Shares of training and validation nodes; of 600 nodes 37 labels a class, as many as AIFB has."""


class _Typed(nn.Module):
    """An R-GCN layer with 4 bases whose edges' types are given once."""

    def __init__(self, types: Tensor, inputs: int, outputs: int) -> None:
        super().__init__()
        self.types, self.conv = types, RGCNConv(inputs, outputs, int(types.max()) + 1, num_bases=4)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """[nodes, d] -> [nodes, k]."""
        found: Tensor = self.conv(x, edge_index, self.types)
        return found


def _classifier(name: str, graph: Any, dropout: float) -> nn.Module:
    """Two layers; all have at most as many parameters as an R-GCN of width 16."""

    def typed(width: int) -> nn.Module:
        types = graph.edge_type
        if name == SHUFFLED:
            types = types[torch.randperm(len(types), generator=torch.Generator().manual_seed(0))]
        layer = partial(_Typed, types)
        return n.NodeNetwork(layer, [graph.num_features, width, 4], dropout=dropout)

    if name in (TYPED, SHUFFLED):
        return typed(16)
    layer = GCNConv if name == BLIND else n.Own

    def other(width: int) -> nn.Module:
        return n.NodeNetwork(layer, [graph.num_features, width, 4], dropout=dropout)

    return other(width_for(other, parameters(typed(16))))


def classified(alike: float, nodes: int, seeds: range, epochs: int) -> dict[str, list[float]]:
    """Test accuracies; rate and dropout of each are chosen on the validation nodes of a graph that is not tested on."""
    found: dict[str, list[float]] = {}
    draft = typed_relations(nodes, alike=alike, shares=LABELS, seed=seeds[0] + 1000)
    options = [(rate, dropout) for rate in (0.03, 0.1) for dropout in (0.2, 0.5)]
    for name in (TYPED, SHUFFLED, BLIND, FEATURES):

        def fit(graph: Any, option: tuple[float, float], s: int, name: str = name) -> tuple[float, float]:
            model = n.seeded(partial(_classifier, name, graph, option[1]), s)
            return fit_nodes(model, graph, epochs=epochs, rate=option[0])

        best = max(options, key=lambda option: fit(draft, option, 1000)[1])
        graphs = ((typed_relations(nodes, alike=alike, shares=LABELS, seed=s), s) for s in seeds)
        found[name] = [fit(graph, best, s)[0] for graph, s in graphs]
    return found
