"""Training one graph network on one graph, or on a list of graphs: the ordinary loops, for studies and examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.graphs.sparse_features import prepared, sparse_features


def fit_nodes(
    model: nn.Module,
    data: Any,
    *,
    epochs: int = 100,
    rate: float = 0.01,
    decay: float = 5e-4,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
) -> tuple[float, float]:
    """Train by Adam on ``train_mask``, the whole graph at once; the epoch with the best validation accuracy counts.

    Args:
        model: called as ``model(x, edge_index)``; left in eval mode with the weights of the best epoch.
        data: x [n, d], edge_index, y [n], train_mask, val_mask, test_mask [n].
        epochs, rate, decay: of Adam.
        loss: (model, data) -> scalar; the cross-entropy on ``train_mask`` by default.

    Returns:
        Test and validation accuracy.
    """
    measured = loss or node_cross_entropy
    optimiser = torch.optim.Adam(model.parameters(), rate, weight_decay=decay)
    best, kept, held = -1.0, {}, prepared(data.x)
    for epoch in range(epochs):
        model.train()
        optimiser.zero_grad()
        with sparse_features(held):
            found = measured(model, data)
        found.backward()
        optimiser.step()
        if epoch % 2 and epoch < epochs - 1:
            continue
        with sparse_features(held):
            accuracy = node_accuracy(model, data, data.val_mask)
        if accuracy >= best:
            best, kept = accuracy, {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(kept)
    return node_accuracy(model, data, data.test_mask), best


def node_cross_entropy(model: nn.Module, data: Any) -> Tensor:
    """Cross-entropy of ``model(x, edge_index)`` with y on ``train_mask``."""
    return F.cross_entropy(model(data.x, data.edge_index)[data.train_mask], data.y[data.train_mask])


def node_accuracy(model: nn.Module, data: Any, mask: Tensor) -> float:
    """Share of the masked nodes that are answered right, in eval mode."""
    model.eval()
    with torch.no_grad():
        answers = model(data.x, data.edge_index)[mask].argmax(1)
    return float((answers == data.y[mask]).double().mean())


def fit_graphs(
    model: nn.Module,
    graphs: Sequence[Any],
    *,
    epochs: int = 60,
    rate: float = 0.005,
    decay: float = 0.0,
    batch_size: int = 32,
    seed: int = 0,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    after_epoch: Callable[[int], None] | None = None,
) -> nn.Module:
    """Train by Adam on graphs with y [1]; the model is called as ``model(x, edge_index, batch)``; in eval mode after.

    Args:
        graphs: ``Data`` each.
        epochs, rate, decay, batch_size: of Adam; the order is drawn anew each epoch.
        seed: of the order.
        loss: (model, batch of graphs) -> scalar; the cross-entropy with y by default.
        after_epoch: called with the number of epochs done; it may leave the model in eval mode.
    """
    from torch_geometric.data import Batch

    order = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), rate, weight_decay=decay)
    graphs = list(graphs)
    measured = loss or graph_cross_entropy
    for epoch in range(epochs):
        model.train()
        for some in torch.randperm(len(graphs), generator=order).split(batch_size):
            batch = Batch.from_data_list([graphs[i] for i in some.tolist()])
            optimiser.zero_grad()
            measured(model, batch).backward()
            optimiser.step()
        if after_epoch is not None:
            after_epoch(epoch + 1)
    return model.eval()


def graph_cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy of ``model(x, edge_index, batch)`` with y [graphs]."""
    return F.cross_entropy(model(batch.x, batch.edge_index, batch.batch), batch.y)


class KeepBest:
    """Keeps the weights of the epoch with the lowest score, as ``fit_graphs(..., after_epoch=KeepBest(...))``.

    Args:
        model: whose weights are kept.
        score: () -> number to be small, such as the error on validation graphs; the model is in eval mode for it.
        every: epochs between scores.
    """

    def __init__(self, model: nn.Module, score: Callable[[], float], *, every: int = 1) -> None:
        self.model, self.score, self.every = model, score, every
        self.best, self.epoch = float("inf"), 0
        self.kept: dict[str, Tensor] = {}

    def __call__(self, epoch: int) -> None:
        """Score, and keep the weights if they are the best."""
        if epoch % self.every:
            return
        self.model.eval()
        with torch.no_grad():
            found = float(self.score())
        if found < self.best:
            self.best, self.epoch = found, epoch
            self.kept = {k: v.clone() for k, v in self.model.state_dict().items()}

    def restore(self) -> nn.Module:
        """The model with the weights that were kept (its own, if no epoch was scored), in eval mode."""
        if self.kept:
            self.model.load_state_dict(self.kept)
        return self.model.eval()


def graph_accuracy(model: nn.Module, graphs: Sequence[Any]) -> float:
    """Share of the graphs that are answered right, in eval mode."""
    from torch_geometric.data import Batch

    batch = Batch.from_data_list(list(graphs))
    with torch.no_grad():
        answers = model.eval()(batch.x, batch.edge_index, batch.batch).argmax(1)
    return float((answers == batch.y).double().mean())


__all__ = [
    "KeepBest",
    "fit_graphs",
    "fit_nodes",
    "graph_accuracy",
    "graph_cross_entropy",
    "node_accuracy",
    "node_cross_entropy",
]
