"""node2vec: embeddings by which a node's company on biased walks can be told from nodes at random.

Grover & Leskovec 2016, with negative sampling: the loss is the mean of -log sigmoid(z_v . z_u) over nodes u that come
up to ``context`` steps after v on a walk, plus that of -log sigmoid(-z_v . z_w) over nodes w drawn uniformly, with one
table z for both roles, as PyTorch Geometric's ``Node2Vec`` has it. p = q = 1 is DeepWalk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.graphs.random_walks import Walker, windows


class Node2Vec(nn.Module):
    """A table of embeddings [nodes, size], fitted to walks.

    Args:
        edge_index: [2, edges], both directions of each edge.
        nodes: how many.
        size: of an embedding.
        p, q: of the walks, see :class:`microtome.graphs.random_walks.Walker`.
        length: steps of a walk.
        context: nodes after the centre that count as its company.
        walks: from each node, an epoch.
        negatives: nodes drawn for each that is in company.
    """

    def __init__(
        self,
        edge_index: Tensor,
        nodes: int,
        size: int = 32,
        *,
        p: float = 1.0,
        q: float = 1.0,
        length: int = 20,
        context: int = 5,
        walks: int = 5,
        negatives: int = 1,
    ) -> None:
        super().__init__()
        self.walker = Walker(edge_index, nodes, p=p, q=q)
        self.embedding = nn.Embedding(nodes, size)
        self.length, self.context, self.walks, self.negatives = length, context, walks, negatives

    def forward(self, nodes: Tensor | None = None) -> Tensor:
        """[n, size] embeddings of these nodes, or of all."""
        return self.embedding.weight if nodes is None else self.embedding(nodes)

    def loss(self, company: Tensor, strangers: Tensor) -> Tensor:
        """Of windows [n, context + 1] and nodes drawn at random [n, m], both against the windows' first node."""
        centre = self.embedding(company[:, :1])
        near = (centre * self.embedding(company[:, 1:])).sum(-1)
        far = (centre * self.embedding(strangers)).sum(-1)
        return -F.logsigmoid(near).mean() - F.logsigmoid(-far).mean()

    def fit(self, *, epochs: int = 5, rate: float = 0.02, batch_size: int = 512, seed: int = 0) -> Node2Vec:
        """Train by Adam; walks are drawn anew each epoch.

        Args:
            batch_size: windows an update; with many, a small graph gets too few updates to learn anything.
        """
        draw = torch.Generator().manual_seed(seed)
        optimiser = torch.optim.Adam(self.parameters(), rate)
        nodes = self.embedding.num_embeddings
        starts = torch.arange(nodes).repeat(self.walks)
        for epoch in range(epochs):
            company = windows(
                self.walker.walks(starts, self.length, seed=seed * 1000 + epoch), self.context + 1
            )
            for some in torch.randperm(len(company), generator=draw).split(batch_size):
                strangers = torch.randint(nodes, (len(some), self.context * self.negatives), generator=draw)
                optimiser.zero_grad()
                self.loss(company[some], strangers).backward()
                optimiser.step()
        return self.eval()


EDGES = {
    "Hadamard": lambda a, b: a * b,
    "average": lambda a, b: (a + b) / 2,
    "L1": lambda a, b: (a - b).abs(),
    "L2": lambda a, b: (a - b).square(),
}
"""How two nodes' embeddings [n, size] are made one of their edge."""


__all__ = ["EDGES", "Node2Vec"]
