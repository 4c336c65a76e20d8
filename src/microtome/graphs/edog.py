"""EDoG: find added edges by how badly a model of the graph's own growth predicts them (Xu et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.data.graphs import geometric
from microtome.errors import UsageError
from microtome.graphs.poisoning import injected, propagation, reduced

geometric()


def edge_outliers(data: Any, pairs: Tensor) -> Tensor:
    """[m] how far each edge [2, m] lies from the others on the side of strangers: a one-sided Mahalanobis distance.

    Three features an edge: the cosine of its ends' features; the cosine of either end with the mean of the other's
    neighbours but itself (the lower of the two); the logarithm of 1 + common neighbours, weighted by 1 / log degree
    (Adamic & Adar 2003). Where an edge is above the median it counts as at the median.
    """
    n, (u, v) = data.num_nodes, pairs
    x = F.normalize(data.x.float(), dim=1)
    both = torch.cat([pairs, pairs.flip(0)], 1)
    degree = torch.bincount(both[0], minlength=n).float()
    adjacent = torch.sparse_coo_tensor(
        both, torch.ones(both.shape[1]), (n, n), check_invariants=True
    ).coalesce()
    around = adjacent @ x
    near = torch.minimum(
        F.cosine_similarity(x[u], around[v] - x[u], dim=1), F.cosine_similarity(x[v], around[u] - x[v], dim=1)
    )
    weight = 1 / degree.clamp_min(2).log()
    table = torch.stack([(x[u] * x[v]).sum(1), near, _common(both, weight, pairs).log1p()], 1)
    table = table - table.median(0).values
    spread = table.T @ table / len(table) + 1e-6 * torch.eye(table.shape[1])
    low = table.clamp_max(0)
    return (low * torch.linalg.solve(spread, low.T).T).sum(1).clamp_min(0).sqrt()


def _common(both: Tensor, weight: Tensor, pairs: Tensor) -> Tensor:
    """[m] the weights of the neighbours that the ends of each pair have in common, summed."""
    from scipy.sparse import coo_array

    n = len(weight)
    a = coo_array((torch.ones(both.shape[1]).numpy(), tuple(both.numpy())), (n, n)).tocsr()
    paths = ((a * weight.numpy()) @ a).tocsr()
    u, v = pairs.numpy()
    return torch.from_numpy(paths[u, v]).flatten().float()


class LinkGenerator(nn.Module):
    """Rows of nodes from the edges seen so far, and the log-odds that two nodes are joined next.

    z = A relu(A x W + x V) W' + x V', log-odds(u, v) = z_u . z_v / sqrt(width) + b; V carries what a node is by itself.

    Args:
        inputs, hidden: widths.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.first, self.own = nn.Linear(inputs, hidden), nn.Linear(inputs, hidden, bias=False)
        self.second, self.skip = nn.Linear(hidden, hidden, bias=False), nn.Linear(inputs, hidden, bias=False)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        """[n, hidden] rows of x [n, inputs] and a propagation [n, n]."""
        return step @ self.second(F.relu(step @ self.first(x) + self.own(x))) + self.skip(x)

    def odds(self, rows: Tensor, pairs: Tensor) -> Tensor:
        """[p] logits of pairs [2, p]."""
        return (rows[pairs[0]] * rows[pairs[1]]).sum(1) / rows.shape[1] ** 0.5 + self.bias


@dataclass(kw_only=True)
class EDoG:
    """Trust in every edge of a possibly attacked graph, without knowing the attack.

    1. Where many edges may be false, the share ``filtered`` that lies farthest out by :func:`edge_outliers` is
       kept from training.
    2. Again and again a sub-graph is drawn, a share ``seen`` of the edges, and a model trained to continue it: to tell
       the edges left out from pairs drawn at random. If a share r of the edges is false, a sub-graph of k edges is free
       of them with probability at least 1 - k r, so what is learned is what the true ones have in common.
    3. An edge is trusted by its mean log-odds over those of ``samples`` sub-graphs that do not contain it: it never
       vouches for itself, which sets this apart from link prediction on the whole graph.

    Sub-graphs are drawn by edges and continued in one step here; the paper grows them node by node.

    Args:
        hidden, steps, rate, seed: of the model and its training (Adam); trained long, it learns the false edges too.
        width: dimension the features are reduced to.
        whole: no filter and every edge in sight, at training and after: plain link prediction, for comparison.
    """

    seen: float = 0.5
    filtered: float = 0.0
    samples: int = 20
    hidden: int = 16
    steps: int = 60
    rate: float = 0.01
    width: int = 64
    whole: bool = False
    seed: int = 0

    def fit(self, data: Any) -> LinkGenerator:
        """The trained model, in eval mode.

        Raises:
            UsageError: MT477 for shares outside 0..1 or a graph of fewer than 10 edges.
        """
        pairs, _ = injected(data)
        if not 0 < self.seen < 1 or not 0 <= self.filtered < 1 or pairs.shape[1] < 10:
            raise UsageError("MT477", "sub-graphs need 0 < seen < 1, 0 <= filtered < 1 and 10 edges or more")
        if self.filtered and not self.whole:
            far = edge_outliers(data, pairs)
            kept = far.argsort(stable=True)[: round((1 - self.filtered) * pairs.shape[1])]
            pairs = pairs[:, kept.sort().values]
        x, draw = self.rows(data), torch.Generator().manual_seed(self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = LinkGenerator(x.shape[1], self.hidden)
        optimiser = torch.optim.Adam(model.parameters(), self.rate, weight_decay=1e-4)
        for _ in range(self.steps):
            seen, asked = self.draw(pairs, draw)
            rows = model(x, propagation(seen, len(x))[0])
            others = torch.randint(len(x), (2, asked.shape[1]), generator=draw)
            loss = F.softplus(-model.odds(rows, asked)).mean() + F.softplus(model.odds(rows, others)).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return model.eval()

    def draw(self, pairs: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """[2, s] the edges of a sub-graph, and [2, m - s] those by which it is to be continued."""
        if self.whole:
            return pairs, pairs
        seen = torch.rand(pairs.shape[1], generator=draw) < self.seen
        return pairs[:, seen], pairs[:, ~seen]

    def rows(self, data: Any) -> Tensor:
        """[n, width] features as the model reads them, of mean length sqrt(width)."""
        x = reduced(data.x, self.width)
        return x * (x.shape[1] ** 0.5 / x.norm(dim=1).mean().clamp_min(1e-12))

    def trust(self, data: Any, pairs: Tensor | None = None, model: LinkGenerator | None = None) -> Tensor:
        """[p] mean log-odds of pairs [2, p], the graph's own edges by default (in the order of ``injected``)."""
        model = self.fit(data) if model is None else model
        edges, _ = injected(data)
        asked = edges if pairs is None else pairs
        n, x = data.num_nodes, self.rows(data)
        with torch.no_grad():
            if self.whole:
                return model.odds(model(x, propagation(edges, n)[0]), asked)
            keys, wanted = edges[0] * n + edges[1], asked.amin(0) * n + asked.amax(0)
            draw = torch.Generator().manual_seed(self.seed + 1)
            total, times = torch.zeros(asked.shape[1]), torch.zeros(asked.shape[1])
            folds = round(1 / min(self.seen, 1 - self.seen))
            for sample in range(max(self.samples, folds)):
                # The edges fall into folds, one of which is left out, or alone seen: none is forgotten by chance.
                if sample % folds == 0:
                    fold = torch.randperm(len(keys), generator=draw) % folds
                left = (fold == sample % folds) == (self.seen >= 0.5)
                rows = model(x, propagation(edges[:, ~left], n)[0])
                free = ~torch.isin(wanted, keys[~left])
                total[free] += model.odds(rows, asked[:, free])
                times += free
        return total / times.clamp_min(1)


__all__ = ["EDoG", "LinkGenerator", "edge_outliers"]
