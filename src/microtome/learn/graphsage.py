"""GraphSAGE's two ways to learn aggregators that work on nodes never seen (Hamilton, Ying & Leskovec 2017).

Supervised: every epoch each node hears a few of its neighbours, drawn anew, so that a step costs the same on any graph.
Unsupervised: nodes that come up together on short walks are to have like embeddings, others unlike:
J(z_u) = -log sigmoid(z_u . z_v) - Q E_w log sigmoid(-z_u . z_w), with v near u on a walk and w drawn at random.
PyTorch Geometric's ``SAGEConv`` has the aggregators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.graphs.loader import CSR
from microtome.graphs.random_walks import Walker, windows


def sampled_edges(csr: CSR, count: int, seed: int) -> Tensor:
    """[2, s] up to ``count`` edges into every node, drawn uniformly without replacement; sorted by target."""
    import numpy as np

    nodes = np.arange(len(csr.start) - 1)
    owner, source, _ = csr.sample(nodes, count, seed)
    return torch.from_numpy(np.stack([source, owner]))


def hearing_few(data: Any, count: int, *, seed: int = 0) -> Callable[[nn.Module, Any], Tensor]:
    """A loss for :func:`microtome.learn.graph_training.fit_nodes`: cross-entropy over neighbours drawn each time.

    Args:
        data: the graph that is trained on.
        count: neighbours a node hears; -1 for all.
        seed: of the draws.
    """
    csr, calls = CSR(data.edge_index, data.num_nodes), [0]

    def loss(model: nn.Module, given: Any) -> Tensor:
        calls[0] += 1
        edges = sampled_edges(csr, count, seed * 1_000_003 + calls[0])
        return F.cross_entropy(model(given.x, edges)[given.train_mask], given.y[given.train_mask])

    return loss


def walk_loss(embedded: Tensor, company: Tensor, strangers: Tensor, negatives: float = 1.0) -> Tensor:
    """J above, of embeddings [n, d], pairs in company [m, 2], and nodes drawn at random [m, k]; Q is ``negatives``."""
    here = embedded[company[:, 0]]
    near = (here * embedded[company[:, 1]]).sum(-1)
    far = (here[:, None] * embedded[strangers]).sum(-1)
    return -F.logsigmoid(near).mean() - negatives * F.logsigmoid(-far).mean()


def fit_by_walks(
    model: nn.Module,
    data: Any,
    *,
    epochs: int = 50,
    rate: float = 0.01,
    length: int = 5,
    walks: int = 2,
    strangers: int = 5,
    seed: int = 0,
) -> nn.Module:
    """Train by Adam on :func:`walk_loss`; no labels are read.

    Args:
        model: called as ``model(x, edge_index)``, gives [n, d], which is scaled to length 1; in eval mode after.
        data: x and edge_index, both directions of each edge.
        length, walks: of the walks from each node, drawn anew each epoch.
        strangers: nodes drawn for each that is in company.
    """
    walker, nodes = Walker(data.edge_index, data.num_nodes), data.num_nodes
    draw = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), rate)
    starts = torch.arange(nodes).repeat(walks)
    model.train()
    for epoch in range(epochs):
        runs = windows(walker.walks(starts, length, seed=seed * 1000 + epoch), length + 1)
        near = torch.randint(1, length + 1, (len(runs), 1), generator=draw)
        company = torch.cat([runs[:, :1], runs.gather(1, near)], 1)
        company = company[company[:, 0] != company[:, 1]]
        others = torch.randint(nodes, (len(company), strangers), generator=draw)
        optimiser.zero_grad()
        walk_loss(F.normalize(model(data.x, data.edge_index), dim=-1), company, others).backward()
        optimiser.step()
    return model.eval()


__all__ = ["fit_by_walks", "hearing_few", "sampled_edges", "walk_loss"]
