"""Judging explanations of planted motifs, for the studies of this room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.explain import Explainer
from torch_geometric.nn import GINConv

from microtome.graphs.goat import GOAt

CONFIG = {"mode": "multiclass_classification", "return_type": "raw"}


def explainer(model: Any, algorithm: Any, level: str) -> Any:
    """PyTorch Geometric's, of edges alone."""
    config = {**CONFIG, "task_level": level}
    return Explainer(model, algorithm, "model", model_config=config, edge_mask_type="object")


def largest(scores: Tensor, graph: Any) -> Tensor:
    """[edges] 1 for both directions of the highest pairs, as many as the motif has; ``scores`` sum both directions."""
    once = (graph.edge_index[0] < graph.edge_index[1]).nonzero()[:, 0]
    pairs = once[scores[once].topk(int(graph.edge_truth[once].sum())).indices]
    size = graph.num_nodes
    keys = graph.edge_index.amin(0) * size + graph.edge_index.amax(0)
    return torch.isin(keys, keys[pairs]).float()


def likeness(scores: Sequence[Tensor], graphs: Sequence[Any]) -> float:
    """Mean cosine of explanations of two graphs of one class: motif edges in order of score, others never the same."""
    total, pairs = 0.0, 0
    for label in (0, 1):
        rows = []
        for s, g in zip(scores, graphs, strict=True):
            if int(g.y) == label:
                once = g.edge_index[0] < g.edge_index[1]
                own = s[once & (g.edge_truth > 0)].sort(descending=True).values
                rows.append(own / s[once].norm().clamp_min(1e-30))
        table = torch.stack(rows)
        total += float((table @ table.T).sum() - table.square().sum())
        pairs += len(rows) * (len(rows) - 1)
    return total / max(pairs, 1)


def apart(model: Any, kept: Tensor, batch: Any) -> float:
    """Distance of the classes' mean embeddings of the explanations alone, in deviations within a class."""
    embedded = Explainer(
        _Embedding(model), GOAt(), "model", edge_mask_type="object",
        model_config={**CONFIG, "task_level": "graph"},
    ).get_masked_prediction(batch.x, batch.edge_index, None, kept, batch=batch.batch)  # fmt: skip
    rows = [embedded[batch.y == label].double() for label in (0, 1)]
    means = [r.mean(0) for r in rows]
    spread = torch.cat([(r - m).square().sum(1) for r, m in zip(rows, means, strict=True)]).mean().sqrt()
    return float((means[0] - means[1]).norm() / spread.clamp_min(1e-30))


class _Embedding(torch.nn.Module):
    """A graph network up to its last map."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        """[nodes, d] -> [graphs, width]."""
        found: Tensor = self.inner.embed(x, edge_index, batch)
        return found


def normalised(inputs: int, outputs: int) -> nn.Module:
    """A GIN layer whose perceptron has batch norm: hubs' sums would drown the other nodes' otherwise."""
    inner = nn.Sequential(
        nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(), nn.Linear(outputs, outputs)
    )
    return GINConv(inner, train_eps=True)
