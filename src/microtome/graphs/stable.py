"""STABLE: representations learned without labels, insensitive to tampering, refine the graph (Li et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.data.graphs import geometric
from microtome.errors import UsageError
from microtome.graphs.poisoning import injected, propagation, rebuilt
from microtome.graphs.purification import Metric, similarity

geometric()
from torch_geometric.nn import GCNConv  # noqa: E402 - only once it is known to be there
from torch_geometric.transforms import BaseTransform  # noqa: E402


class ContrastiveEncoder(nn.Module):
    """One graph convolution, and a bilinear judge of whether a node's row belongs to a view's summary.

    Args:
        inputs, hidden: widths.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(inputs, hidden)))
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.judge = nn.Parameter(nn.init.xavier_uniform_(torch.empty(hidden, hidden)))
        self.bend = nn.PReLU()

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        """[n, hidden] of x [n, inputs] (dense or sparse) and a propagation [n, n]."""
        return self.bend(step @ (x @ self.weight) + self.bias)

    def loss(self, x: Tensor, clean: Tensor, views: list[Tensor], order: Tensor) -> Tensor:
        """Rows of the roughly cleaned graph belong to every view's mean, those of shuffled features do not.

        ``order`` [n] is the shuffle. The judgements of the views are added before the cross-entropy.
        """
        mapped = x @ self.weight
        real, false = (self.bend(clean @ m + self.bias) for m in (mapped, mapped[order]))
        summaries = [self.bend(v @ mapped + self.bias).mean(0).sigmoid() for v in views]
        towards = self.judge @ torch.stack(summaries).sum(0)
        return (F.softplus(-(real @ towards)).mean() + F.softplus(false @ towards).mean()) / 2


@dataclass(kw_only=True)
class STABLE(BaseTransform):
    """A transform: learn rows for the nodes, cut edges between unlike rows, add edges to the most alike.

    1. Rough cleaning cuts edges whose features are less alike than ``rough``.
    2. Views are the rough graph with a share ``recover`` of what was cut put back, at random: they differ in just the
       doubtful edges, so that what agrees between them does not rest on those (the method's point).
    3. :class:`ContrastiveEncoder` is trained to tell rows of the rough graph from rows of shuffled features.
    4. Of the given graph, edges with a cosine of rows of at most ``cut`` go; every node is joined with the
       ``neighbours`` most alike of those with more than ``trusted`` edges left (in both directions here).

    The graph that comes back has the rows as its ``x``; :class:`DegreeGCN` is the classifier for it.

    Args:
        hidden, epochs, rate, views, seed: of the encoder and its training (Adam, stopped after 20 epochs without gain).
        metric: of the rough cleaning; "jaccard" for features that are there or not.
    """

    rough: float = 0.03
    metric: Metric = "jaccard"
    recover: float = 0.2
    views: int = 2
    hidden: int = 128
    epochs: int = 200
    rate: float = 0.002
    cut: float = 0.1
    neighbours: int = 5
    trusted: int = 1
    seed: int = 0

    def represent(self, data: Any) -> Tensor:
        """[n, hidden] the nodes' rows.

        Raises:
            UsageError: MT475 for a share ``recover`` outside 0..1.
        """
        if not 0 <= self.recover <= 1:
            raise UsageError("MT475", f"recover={self.recover} is not in 0..1")
        n = data.num_nodes
        pairs, _ = injected(data)
        doubtful = similarity(data.x, pairs, self.metric) < self.rough
        kept, cut = pairs[:, ~doubtful], pairs[:, doubtful]
        draw = torch.Generator().manual_seed(self.seed)
        back = round(self.recover * cut.shape[1])
        restored = [cut[:, torch.randperm(cut.shape[1], generator=draw)[:back]] for _ in range(self.views)]
        clean = propagation(kept, n)[0]
        views = [propagation(torch.cat([kept, r], 1), n)[0] for r in restored]
        x = data.x.float()
        if float((x != 0).float().mean()) < 0.1:
            x = x.to_sparse()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            encoder = ContrastiveEncoder(data.x.shape[1], self.hidden)
        optimiser = torch.optim.Adam(encoder.parameters(), self.rate)
        best, waited = float("inf"), 0
        for _ in range(self.epochs):
            optimiser.zero_grad()
            loss = encoder.loss(x, clean, views, torch.randperm(n, generator=draw))
            loss.backward()
            optimiser.step()
            now = float(loss.detach())
            waited = 0 if now < best else waited + 1
            best = min(best, now)
            if waited == 20:
                break
        with torch.no_grad():
            return encoder(x, clean)

    def forward(self, data: Any) -> Any:
        """The refined graph; the given one is not changed."""
        return self.refine(data, self.represent(data))

    __call__ = forward

    def refine(self, data: Any, rows: Tensor) -> Any:
        """The graph with edges cut and added by rows [n, h] that are known already, which become its ``x``."""
        pairs, marks = injected(data)
        kept = similarity(rows, pairs) > self.cut
        pairs, marks = pairs[:, kept], marks[kept]
        degree = torch.bincount(pairs.flatten(), minlength=len(rows))
        near = nearest(rows, self.neighbours, degree > self.trusted)
        both = torch.cat([pairs, near], 1)
        changed = rebuilt(
            data, both, edge_injected=torch.cat([marks, torch.zeros(near.shape[1], dtype=torch.bool)])
        )
        pairs, marks = injected(changed)
        changed = rebuilt(changed, pairs, edge_injected=marks)
        changed.x = rows
        return changed


def nearest(rows: Tensor, count: int, allowed: Tensor) -> Tensor:
    """[2, n k] each node with the ``count`` most alike (cosine) other nodes of those ``allowed`` [n]; in blocks."""
    unit = F.normalize(rows, dim=1)
    choice = allowed.nonzero()[:, 0]
    k = min(count, len(choice) - 1)
    if k < 1:
        return torch.zeros(2, 0, dtype=torch.long)
    found = []
    nodes = torch.arange(len(rows))
    for some in nodes.split(max((1 << 23) // len(choice), 1)):
        alike = (unit[some] @ unit[choice].T).masked_fill_(some[:, None] == choice, -2.0)
        found.append(choice[alike.topk(k, 1).indices])
    return torch.stack([nodes.repeat_interleave(k), torch.cat(found).flatten()])


class DegreeGCN(nn.Module):
    """A GCN that heeds neighbours of many edges more, for attacks join nodes of few.

    Messages u -> v are weighted by (d_u d_v)^a over the sum of these, in which d_v cancels: d_u^a / sum d_w^a, loops
    included; a = -0.5 without that sum would be the ordinary GCN.

    Args:
        inputs, hidden, outputs: widths.
        alpha: the power.
        dropout: before the second convolution.
    """

    def __init__(
        self, inputs: int, hidden: int, outputs: int, *, alpha: float = 0.6, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.first, self.second = (
            GCNConv(a, b, normalize=False) for a, b in ((inputs, hidden), (hidden, outputs))
        )
        self.alpha, self.dropout = alpha, dropout

    def weigh(self, edge_index: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
        """[2, m + nodes] edges with loops and [m + nodes] their weights; those into a node add up to 1."""
        own = torch.arange(nodes)
        edges = torch.cat([edge_index, torch.stack([own, own])], 1)
        power = torch.bincount(edges[1], minlength=nodes).float()[edges[0]] ** self.alpha
        total = torch.zeros(nodes).index_add_(0, edges[1], power)
        return edges, power / total[edges[1]]

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """[nodes, inputs] -> [nodes, outputs] logits."""
        edges, weight = self.weigh(edge_index, len(x))
        x = F.dropout(F.relu(self.first(x, edges, weight)), self.dropout, self.training)
        return self.second(x, edges, weight)


__all__ = ["STABLE", "ContrastiveEncoder", "DegreeGCN", "nearest"]
