"""UGBA: a backdoor in few chosen nodes whose triggers resemble what they hang on (Dai, Lin, Zhang & Wang 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.data.graphs import geometric
from microtome.errors import UsageError
from microtome.graphs.poisoning import injected, rebuilt
from microtome.graphs.purification import similarity

geometric()
from torch_geometric.nn import GCNConv  # noqa: E402 - only once it is known to be there


class TriggerGenerator(nn.Module):
    """A trigger for every node: features of ``size`` new nodes, and which pairs of them are joined.

    Pairs are joined where a logit is above 0; the gradient passes that step as if it were the identity.

    Args:
        inputs, hidden: widths.
        size: nodes of a trigger.
        bounded: whether new features are as long as those of the node they hang on; else of any length, which a
            network that is not poisoned may follow too.
    """

    def __init__(self, inputs: int, hidden: int, size: int, *, bounded: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU())
        self.features, self.edges = (
            nn.Linear(hidden, size * inputs),
            nn.Linear(hidden, size * (size - 1) // 2),
        )
        self.size, self.bounded = size, bounded

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[b, size, inputs] features and [b, size (size - 1) / 2] zeros and ones, of rows x [b, inputs]."""
        h = self.body(x)
        logits = self.edges(h)
        features = self.features(h).view(len(x), self.size, -1)
        if self.bounded:
            features = F.normalize(features, dim=2) * x.norm(dim=1)[:, None, None]
        return features, (logits > 0).float() + logits - logits.detach()


def trigger_edges(nodes: Tensor, first: int, size: int) -> Tensor:
    """[2, b (1 + size (size - 1) / 2)] per node: to the first new node, then all pairs of its new nodes."""
    start = first + size * torch.arange(len(nodes))
    inner = torch.triu_indices(size, size, 1)
    pairs = torch.cat([torch.stack([nodes, start])[:, :, None], inner[:, None] + start[:, None]], 2)
    return pairs.reshape(2, -1)


def attached(data: Any, nodes: Tensor, features: Tensor, edges: Tensor) -> Any:
    """The graph with a trigger on each of ``nodes`` [b]; new nodes come last, belong to no split and have label 0.

    ``edge_injected`` marks the edges of triggers.
    """
    n, size = data.num_nodes, features.shape[1]
    pairs, _ = injected(data)
    kept = torch.cat([torch.ones(len(nodes), 1), edges], 1).flatten() > 0.5
    new = trigger_edges(nodes, n, size)[:, kept]
    grown = data.clone()
    more = len(nodes) * size
    grown.x = torch.cat([data.x, features.reshape(more, -1)])
    grown.y = torch.cat([data.y, data.y.new_zeros(more)])
    for name in ("train_mask", "val_mask", "test_mask"):
        grown[name] = torch.cat([data[name], torch.zeros(more, dtype=torch.bool)])
    if "num_nodes" in grown:
        grown.num_nodes = n + more
    marks = torch.arange(pairs.shape[1] + new.shape[1]) >= pairs.shape[1]
    return rebuilt(grown, torch.cat([pairs, new], 1), edge_injected=marks)


class _Surrogate(nn.Module):
    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = GCNConv(inputs, hidden), GCNConv(hidden, outputs)

    def rows(self, x: Tensor, edge_index: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.relu(self.first(x, edge_index, weight))

    def forward(self, x: Tensor, edge_index: Tensor, weight: Tensor | None = None) -> Tensor:
        return self.second(self.rows(x, edge_index, weight), edge_index, weight)


@dataclass(frozen=True)
class Backdoor:
    """A backdoor that was made: whom it poisons, and the trigger for anyone.

    Attributes:
        generator: of triggers, called as :class:`TriggerGenerator` is.
        nodes: [b] that are poisoned.
        target: the class.
    """

    generator: nn.Module
    nodes: Tensor
    target: int

    def triggered(self, data: Any, nodes: Tensor) -> Any:
        """The graph with the trigger on each of ``nodes`` [b]."""
        with torch.no_grad():
            features, edges = self.generator(data.x[nodes])
        return attached(data, nodes, features, edges)

    def poisoned(self, data: Any) -> Any:
        """The graph to train on: triggers on the poisoned nodes, which are labelled as the target and trained on."""
        found = self.triggered(data, self.nodes)
        found.y = found.y.clone()
        found.y[self.nodes] = self.target
        found.train_mask = found.train_mask.clone()
        found.train_mask[self.nodes] = True
        found.val_mask = found.val_mask.clone()
        found.val_mask[self.nodes] = False
        return found


def representatives(
    rows: Tensor,
    group: Tensor,
    degree: Tensor,
    allowed: Tensor,
    count: int,
    *,
    low_degree: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """[count] nodes that stand for their kind: near the centre of their cluster, and of low degree.

    Within each group the rows are clustered (k-means, as many clusters as nodes are wanted of it); of each cluster the
    allowed node with the least distance to its centre plus ``low_degree`` times its degree, both scaled to 0..1 within
    the group, is taken. A trigger is a larger share of what a node of low degree hears.

    Args:
        rows: [n, h].
        group: [n] the class that is predicted.
        degree: [n].
        allowed: [n] bool.
        count: nodes in all, spread over the groups that have allowed nodes as evenly as can be.
    """
    from scipy.cluster.vq import kmeans2

    groups = group[allowed].unique().tolist()
    found: list[int] = []
    for place, g in enumerate(groups):
        wanted = (count - len(found)) // (len(groups) - place)
        members = (allowed & (group == g)).nonzero()[:, 0]
        wanted = min(wanted, len(members))
        if wanted < 1:
            continue
        points = rows[members].double().numpy()
        centres, own = kmeans2(points, wanted, minit="++", seed=np.random.RandomState(seed), missing="warn")
        far = torch.from_numpy(np.linalg.norm(points - centres[own], axis=1))
        cost = _unit(far) + low_degree * _unit(degree[members].double())
        for cluster in range(wanted):
            inside = torch.from_numpy(own == cluster)
            if inside.any():
                found.append(int(members[inside][cost[inside].argmin()]))
    return torch.tensor(sorted(found), dtype=torch.long)


def _unit(values: Tensor) -> Tensor:
    return (values - values.min()) / (values.max() - values.min()).clamp_min(1e-12)


@dataclass(kw_only=True)
class UGBA:
    """Make a backdoor into whoever trains on the graph: nodes with a trigger are to be taken for class ``target``.

    1. Poisoned nodes are :func:`representatives` of the other classes among the unlabelled nodes.
    2. Bilevel: a surrogate GCN takes a step on the poisoned graph; then the generator takes one, by the surrogate's
       cross-entropy with ``target`` on the poisoned and ``others`` random unlabelled nodes with their triggers, plus
       ``alike`` times the mean over all edges of triggers, the one that attaches them included, of
       max(0, least - cosine of the ends' features). That is what keeps triggers from being cut as unlike.

    Args:
        target: the class.
        budget: nodes that are poisoned.
        size: nodes of a trigger.
        alike: weight of the likeness; 0 leaves it out.
        least: cosine that is enough.
        bounded: whether new nodes' features are as long as the host's.
        choose: representatives, or (False) unlabelled nodes of other classes at random.
        others: nodes drawn for the generator's step.
        hidden, steps, inner, rate, seed: of the surrogate and the generator (Adam); ``inner`` surrogate steps a step.
    """

    target: int = 0
    budget: int = 20
    size: int = 3
    alike: float = 10.0
    least: float = 0.8
    bounded: bool = False
    choose: bool = True
    others: int = 256
    hidden: int = 64
    steps: int = 150
    inner: int = 2
    rate: float = 0.01
    seed: int = 0

    def fit(self, data: Any) -> Backdoor:
        """The backdoor.

        Raises:
            UsageError: MT478 without the three masks, for a class that the graph has not, or a budget beyond the
                nodes that may be poisoned.
        """
        for name in ("train_mask", "val_mask", "test_mask"):
            if getattr(data, name, None) is None:
                raise UsageError("MT478", f"a backdoor needs the graph's {name}")
        open_nodes = ~data.train_mask & ~data.test_mask & (data.y != self.target)
        if not 0 <= self.target <= int(data.y.max()) or not 0 < self.budget <= int(open_nodes.sum()):
            raise UsageError(
                "MT478",
                f"target={self.target} or budget={self.budget} does not fit a graph of {int(data.y.max()) + 1} classes",
                fix="nodes outside training and test are poisoned",
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            nodes = self.chosen(data, open_nodes)
            return Backdoor(self._trained(data, nodes), nodes, self.target)

    def chosen(self, data: Any, allowed: Tensor) -> Tensor:
        """[budget] nodes to poison."""
        places = allowed.nonzero()[:, 0]
        if not self.choose:
            return places[torch.randperm(len(places))[: self.budget]].sort().values
        model = self._surrogate(data)
        optimiser = torch.optim.Adam(model.parameters(), self.rate, weight_decay=5e-4)
        for _ in range(self.steps):
            optimiser.zero_grad()
            F.cross_entropy(
                model(data.x, data.edge_index)[data.train_mask], data.y[data.train_mask]
            ).backward()
            optimiser.step()
        with torch.no_grad():
            rows, answer = model.rows(data.x, data.edge_index), model(data.x, data.edge_index).argmax(1)
        degree = torch.bincount(data.edge_index[0], minlength=data.num_nodes)
        free = allowed & (answer != self.target)
        return representatives(rows, answer, degree, free, self.budget, seed=self.seed)

    def _surrogate(self, data: Any) -> _Surrogate:
        return _Surrogate(data.x.shape[1], self.hidden, int(data.y.max()) + 1)

    def _trained(self, data: Any, nodes: Tensor) -> TriggerGenerator:
        model, generator = (
            self._surrogate(data),
            TriggerGenerator(data.x.shape[1], self.hidden, self.size, bounded=self.bounded),
        )
        inner = torch.optim.Adam(model.parameters(), self.rate, weight_decay=5e-4)
        outer = torch.optim.Adam(generator.parameters(), self.rate, weight_decay=5e-4)
        trained = torch.cat([data.train_mask.nonzero()[:, 0], nodes])
        labels = data.y.clone()
        labels[nodes] = self.target
        rest = (~data.train_mask & ~data.test_mask).nonzero()[:, 0]
        for _ in range(self.steps):
            for _ in range(self.inner):
                with torch.no_grad():
                    x, edges, weight, _ = self._with(data, generator, nodes)
                inner.zero_grad()
                F.cross_entropy(model(x, edges, weight)[trained], labels[trained]).backward()
                inner.step()
            some = torch.cat([nodes, rest[torch.randperm(len(rest))[: self.others]]]).unique()
            x, edges, weight, new = self._with(data, generator, some)
            odds = model(x, edges, weight)[some]
            loss = F.cross_entropy(odds, torch.full_like(some, self.target))
            if self.alike:
                joined = weight[data.edge_index.shape[1] :][: new.shape[1]].detach() > 0.5
                cosine = F.cosine_similarity(x[new[0]], x[new[1]], dim=1)[joined]
                loss = loss + self.alike * F.relu(self.least - cosine).mean()
            outer.zero_grad()
            loss.backward()
            outer.step()
        return generator.eval().requires_grad_(False)

    def _with(
        self, data: Any, generator: TriggerGenerator, nodes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        features, joined = generator(data.x[nodes])
        new = trigger_edges(nodes, data.num_nodes, self.size)
        weight = torch.cat([torch.ones(len(nodes), 1), joined], 1).flatten()
        x = torch.cat([data.x, features.reshape(-1, data.x.shape[1])])
        edges = torch.cat([data.edge_index, new, new.flip(0)], 1)
        return x, edges, torch.cat([torch.ones(data.edge_index.shape[1]), weight, weight]), new


def pruned(data: Any, threshold: float, *, labels: bool = False) -> Any:
    """The defence the triggers are made for: cut edges with a cosine of features below ``threshold``.

    With ``labels`` the nodes at either end of a cut edge are not trained on either.
    """
    pairs, marks = injected(data)
    kept = similarity(data.x, pairs) >= threshold
    found = rebuilt(data, pairs[:, kept], edge_injected=marks[kept])
    if labels:
        found.train_mask = data.train_mask.clone()
        found.train_mask[pairs[:, ~kept].flatten()] = False
    return found


__all__ = ["UGBA", "Backdoor", "TriggerGenerator", "attached", "pruned", "representatives", "trigger_edges"]
