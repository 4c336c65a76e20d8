"""GraphPrompt: one question, how alike two sub-graphs are, for training ahead and for every task after.

Liu, Yu, Fang & Zhang 2023. A sub-graph's embedding is the sum of its nodes' hidden features: of a node's neighbourhood
(and itself), or of a whole graph. Training ahead needs no labels: of a node v, a neighbour a and a node b that is none,
-log exp(cos(s_v, s_a) / T) / sum_{u in (a, b)} exp(cos(s_v, s_u) / T). A task then keeps the network as it is and
learns one vector p: the readout becomes sum p * h, a class is the mean of its examples' readouts, and an example
belongs to the class it is most alike.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def neighbourhoods(hidden: Tensor, edge_index: Tensor) -> Tensor:
    """[n, d] sum of each node's hidden features and its neighbours'."""
    return hidden.index_add(0, edge_index[1], hidden[edge_index[0]])


def link_loss(summed: Tensor, triplets: Tensor, temperature: float = 1.0) -> Tensor:
    """The loss above, of embeddings [n, d] and triplets [m, 3] of v, a neighbour, and a node that is none."""
    unit = F.normalize(summed, dim=-1)
    here = unit[triplets[:, 0], None]
    alike = (here * unit[triplets[:, 1:]]).sum(-1) / temperature
    return -alike.log_softmax(1)[:, 0].mean()


def pretrain(
    model: nn.Module,
    data: Any,
    *,
    epochs: int = 100,
    rate: float = 0.01,
    temperature: float = 1.0,
    seed: int = 0,
) -> nn.Module:
    """Train by Adam on :func:`link_loss` of edges and of pairs drawn at random; no labels are read; in eval mode after.

    Args:
        model: called as ``model(x, edge_index)``, gives hidden features [n, d].
        data: x and edge_index, both directions of each edge; several graphs as one batch.
        temperature: T; small ones (0.2) make every edge a class of its own, and nodes of a community less alike.
    """
    draw = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), rate)
    nodes, edges = data.num_nodes, data.edge_index
    known = (edges[0] * nodes + edges[1]).sort().values
    model.train()
    for _ in range(epochs):
        chosen = edges[:, torch.randint(edges.shape[1], (min(edges.shape[1], 4 * nodes),), generator=draw)]
        other = torch.randint(nodes, (chosen.shape[1],), generator=draw)
        key = chosen[0] * nodes + other
        place = torch.searchsorted(known, key).clamp_max(len(known) - 1)
        apart = (known[place] != key) & (other != chosen[0])
        triplets = torch.stack([*chosen, other], 1)[apart]
        optimiser.zero_grad()
        link_loss(neighbourhoods(model(data.x, edges), edges), triplets, temperature).backward()
        optimiser.step()
    return model.eval()


def alike(
    queries: Tensor, support: Tensor, labels: Tensor, classes: int, prompt: Tensor | None = None
) -> Tensor:
    """[..., q, classes] cosine of each query with each class's mean of support, in any number of tasks at once.

    Args:
        queries: [..., q, d] readouts.
        support: [..., m, d], with labels [..., m]; every class needs an example.
        prompt: [..., d] p; None weighs all features alike.
    """
    if prompt is not None:
        queries, support = queries * prompt[..., None, :], support * prompt[..., None, :]
    member = F.one_hot(labels, classes).to(support)
    means = member.mT @ support / member.sum(-2)[..., None]
    return F.normalize(queries, dim=-1) @ F.normalize(means, dim=-1).mT


def tune(
    support: Tensor,
    labels: Tensor,
    classes: int,
    *,
    epochs: int = 100,
    rate: float = 0.02,
    temperature: float = 1.0,
) -> Tensor:
    """[tasks, d] the prompt of each task, all tuned at once by Adam on their few examples.

    Args:
        support: [tasks, m, d] readouts of the frozen network, with labels [tasks, m].
    """
    prompt = torch.ones(len(support), support.shape[-1], dtype=support.dtype, requires_grad=True)
    optimiser = torch.optim.Adam([prompt], rate)
    for _ in range(epochs):
        optimiser.zero_grad()
        scores = alike(support, support, labels, classes, prompt) / temperature
        # A sum over tasks: each prompt has its own, and Adam looks at every number apart.
        F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="sum").backward()
        optimiser.step()
    return prompt.detach()


__all__ = ["alike", "link_loss", "neighbourhoods", "pretrain", "tune"]
