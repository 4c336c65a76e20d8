"""Carrying a class across a graph: what one node holds must be told at another, far away."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def transfer_batch(
    nodes: int, source: int, classes: int, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Features [count * nodes, classes] and labels [count] of as many copies of a graph.

    The source holds a class one-hot; every other node holds Gaussian noise a tenth as large, so that there is something
    to squash.
    """
    y = torch.randint(classes, (count,), generator=generator)
    x = 0.1 * torch.randn(count, nodes, classes, generator=generator)
    x[:, source] = F.one_hot(y, classes).float()
    return x.reshape(count * nodes, classes), y


def train_transfer(
    model: nn.Module,
    edge_index: Tensor,
    nodes: int,
    source: int,
    target: int,
    *,
    classes: int = 4,
    steps: int = 150,
    batch: int = 16,
    rate: float = 0.005,
    seed: int = 0,
) -> tuple[float, float]:
    """Train a node network by Adam to tell the source's class at the target, and test it on fresh draws.

    Args:
        model: ``model(x, edge_index)`` with ``classes`` inputs and outputs.
        edge_index: [2, m] of one copy of the graph.
        nodes: of one copy.
        source, target: positions in the graph.
        classes, steps, batch, rate, seed: of the task and its training.

    Returns:
        Accuracy on 256 fresh graphs, and the mean norm of the first step's gradient.
    """
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.arange(batch).repeat_interleave(edge_index.shape[1]) * nodes
    edges = edge_index.repeat(1, batch) + offsets
    at = torch.arange(batch) * nodes + target
    optimiser = torch.optim.Adam(model.parameters(), rate)
    first = 0.0
    model.train()
    for step in range(steps):
        x, y = transfer_batch(nodes, source, classes, batch, generator)
        optimiser.zero_grad()
        F.cross_entropy(model(x, edges)[at], y).backward()
        if step == 0:
            norms = [p.grad.square().sum() for p in model.parameters() if p.grad is not None]
            first = float(torch.stack(norms).sum().sqrt())
        optimiser.step()
    model.eval()
    hits = 0
    with torch.no_grad():
        for _ in range(256 // batch):
            x, y = transfer_batch(nodes, source, classes, batch, generator)
            hits += int((model(x, edges)[at].argmax(1) == y).sum())
    return hits / (256 // batch * batch), first


def node_jacobians(model: nn.Module, x: Tensor, edge_index: Tensor) -> Tensor:
    """[n, n] Frobenius norms |d out_v / d x_u| of a network in eval mode, row v, column u; for small graphs."""
    jacobian = torch.func.jacrev(lambda given: model(given, edge_index))(x.detach())
    return jacobian.permute(0, 2, 1, 3).flatten(2).norm(dim=2).detach()


__all__ = ["node_jacobians", "train_transfer", "transfer_batch"]
