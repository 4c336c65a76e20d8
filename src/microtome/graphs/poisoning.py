"""Poisoning a graph's edges at a budget: at random, by class, by the gradient of a surrogate, and around a defence.

Each attack is a PyTorch Geometric transform and names its flips in the order in which it would make them, so that one
search serves every smaller budget: ``flipped(data, attack.flips(data)[:, :k])``. A flip adds an absent undirected edge
or takes a present one away; ``edge_injected`` [edges] marks what was added.

The surrogate is a linearised GCN fitted by ridge regression, Z = F W with F = A^2 X, A = D^-1/2 (E + I) D^-1/2, and
W = (F_l' F_l + c I)^-1 F_l' Y_l on the labelled rows l: its answer to a poisoned graph in closed form, so that the
meta-gradient of Metattack (Zügner & Günnemann 2019), through training, is exact. With P = dL/dF the loss's derivative
with respect to the undirected edge (u, v) is

    G_uv = (M_uv + M_vu) / sqrt(d_u d_v) + r_u + r_v,    M = P (A X)' + (A P) X',
    r_u = -(P . A A X + 2 A P . A X + A A P . X)_u / (2 d_u),

of rank 4 d for all pairs at once: rows are scanned in blocks and nothing of size n x n is held.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from microtome.data.graphs import geometric
from microtome.errors import UsageError
from microtome.graphs.resistance import undirected

geometric()
from torch_geometric.transforms import BaseTransform  # noqa: E402 - only once it is known to be there

MOST = 20_000
"""Most nodes of which all pairs are scanned."""

Suspicion = Callable[[Any, Tensor], Tensor]
"""(graph, pairs [2, p]) -> [p], larger where a defence would sooner cut the edge."""


def rebuilt(data: Any, pairs: Tensor, **edge_values: Tensor) -> Any:
    """The graph with the undirected edges ``pairs`` [2, m] in both directions, and values [m] of each edge beside."""
    changed = data.clone()
    changed.edge_index = torch.cat([pairs, pairs.flip(0)], 1)
    for name, values in edge_values.items():
        changed[name] = torch.cat([values, values])
    return changed


def injected(data: Any) -> tuple[Tensor, Tensor]:
    """[2, m] the undirected edges, smaller end first, in ascending order, and [m] whether an attack added them."""
    pairs = undirected(data.edge_index, data.num_nodes)
    marks = getattr(data, "edge_injected", None)
    if marks is None:
        return pairs, torch.zeros(pairs.shape[1], dtype=torch.bool)
    added = undirected(data.edge_index[:, marks], data.num_nodes)
    return pairs, torch.isin(_keys(pairs, data.num_nodes), _keys(added, data.num_nodes))


def flipped(data: Any, pairs: Tensor) -> Any:
    """The graph with each of ``pairs`` [2, f] (distinct) added if absent, removed if present; the given one is kept.

    Raises:
        UsageError: MT473 when edges carry attributes or weights, of which a new edge would have none.
    """
    if getattr(data, "edge_attr", None) is not None or getattr(data, "edge_weight", None) is not None:
        raise UsageError("MT473", "edges with attributes cannot be poisoned: a new edge would have none")
    n = data.num_nodes
    present, marks = injected(data)
    before, flips = _keys(present, n), _keys(torch.stack([pairs.amin(0), pairs.amax(0)]), n)
    kept = ~torch.isin(before, flips)
    added = flips[~torch.isin(flips, before)]
    after, order = torch.cat([before[kept], added]).sort()
    new = torch.cat([marks[kept], torch.ones(len(added), dtype=torch.bool)])[order]
    return rebuilt(data, torch.stack([after // n, after % n]), edge_injected=new)


def _keys(pairs: Tensor, nodes: int) -> Tensor:
    return pairs[0] * nodes + pairs[1]


@dataclass(kw_only=True)
class Poison(BaseTransform):
    """What attacks share: ``share`` of the number of undirected edges is flipped; draws follow ``seed``."""

    share: float = 0.05
    seed: int = 0
    reads: ClassVar[tuple[str, ...]] = ("y",)

    def count(self, data: Any) -> int:
        """How many flips the budget allows.

        Raises:
            UsageError: MT472 for a share outside 0..1, or a graph without what the attack reads.
        """
        if not 0 <= self.share <= 1:
            raise UsageError("MT472", f"share={self.share} of the edges is not in 0..1")
        for name in self.reads:
            if getattr(data, name, None) is None:
                raise UsageError("MT472", f"{type(self).__name__} needs the graph's {name}")
        return round(self.share * undirected(data.edge_index, data.num_nodes).shape[1])

    def flips(self, data: Any) -> Tensor:
        """[2, f] distinct undirected pairs, the first to be flipped first."""
        raise NotImplementedError

    def forward(self, data: Any) -> Any:
        """The poisoned graph; the given one is not changed."""
        return flipped(data, self.flips(data))

    __call__ = forward


@dataclass(kw_only=True)
class InsertBetweenClasses(Poison):
    """Random new edges between nodes of different labels."""

    def flips(self, data: Any) -> Tensor:
        """[2, f] absent pairs of different labels, uniformly."""
        count, n = self.count(data), data.num_nodes
        draw = torch.Generator().manual_seed(self.seed)
        barred = _keys(undirected(data.edge_index, n), n)
        found = torch.zeros(0, dtype=torch.long)
        for _ in range(40):
            if len(found) >= count:
                break
            u, v = torch.randint(n, (2, 4 * count), generator=draw)
            keys = (torch.minimum(u, v) * n + torch.maximum(u, v))[data.y[u] != data.y[v]].unique()
            keys = keys[~torch.isin(keys, torch.cat([barred, found]))]
            found = torch.cat([found, keys[torch.randperm(len(keys), generator=draw)]])[:count]
        return torch.stack([found // n, found % n])


@dataclass(kw_only=True)
class DICE(Poison):
    """Delete Internally, Connect Externally (Waniek, Michalak, Wooldridge & Rahwan 2018).

    By turns a random edge between different labels is added and a random edge within a label taken away.
    """

    def flips(self, data: Any) -> Tensor:
        """[2, f] additions and removals by turns (additions only, once no inner edge is left)."""
        count = self.count(data)
        added = InsertBetweenClasses(share=self.share, seed=self.seed).flips(data)
        pairs = undirected(data.edge_index, data.num_nodes)
        inner = pairs[:, data.y[pairs[0]] == data.y[pairs[1]]]
        draw = torch.Generator().manual_seed(self.seed + 1)
        removed = inner[:, torch.randperm(inner.shape[1], generator=draw)[: count // 2]]
        turns = torch.cat([torch.arange(added.shape[1]) * 2, torch.arange(removed.shape[1]) * 2 + 1])
        return torch.cat([added, removed], 1)[:, turns.argsort()][:, :count]


def reduced(x: Tensor, width: int) -> Tensor:
    """[n, min(d, width)] the features in their leading singular directions (randomised, always the same draw)."""
    x = x.float()
    if x.shape[1] <= width:
        return x
    q = torch.randn(x.shape[1], width + 8, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        q = torch.linalg.qr(x.T @ (x @ q)).Q
    left, scale, _ = torch.linalg.svd(x @ q, full_matrices=False)
    return (left * scale)[:, :width]


def propagation(edge_index: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """The symmetrically normalised adjacency with loops as a sparse [n, n], and the degrees with loops [n]."""
    pairs = undirected(edge_index, nodes)
    own = torch.arange(nodes)
    places = torch.cat([pairs, pairs.flip(0), torch.stack([own, own])], 1)
    degree = torch.bincount(places[0], minlength=nodes).float()
    values = (degree[places[0]] * degree[places[1]]).rsqrt()
    found = torch.sparse_coo_tensor(places, values, (nodes, nodes), check_invariants=True)
    return found.coalesce(), degree


def edge_gradient(step: Tensor, degree: Tensor, x: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The derivative of a loss with respect to every undirected edge, as G_uv = q_u . s_v + r_u + r_v.

    Args:
        step: sparse [n, n] A.
        degree: [n] with loops.
        x: [n, d].
        p: [n, d] the loss's derivative with respect to A A x.

    Returns:
        q [n, 4 d], s [n, 4 d], r [n].
    """
    ax, ap = step @ x, step @ p
    aax, aap = step @ ax, step @ ap
    r = -((p * aax) + 2 * (ap * ax) + (aap * x)).sum(1) / (2 * degree)
    scale = degree.rsqrt()[:, None]
    left, right = torch.cat([p, ap], 1) * scale, torch.cat([ax, x], 1) * scale
    return torch.cat([left, right], 1), torch.cat([right, left], 1), r


def ridge(features: Tensor, labels: Tensor, penalty: float) -> Tensor:
    """[d, k] W = (F' F + c I)^-1 F' Y of rows [m, d] and one-hot labels [m, k]; c is ``penalty`` times tr(F'F) / d."""
    gram = features.T @ features
    mean = gram.diagonal().mean().detach()
    return torch.linalg.solve(gram + penalty * mean * torch.eye(len(gram)), features.T @ labels)


def lost_margin(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean of tanh(best wrong score - right score): bounded, so that nodes long lost attract no further flips."""
    right = scores.gather(1, labels[:, None])[:, 0]
    wrong = scores.scatter(1, labels[:, None], -torch.inf).amax(1)
    return (wrong - right).tanh().mean()


@dataclass(kw_only=True)
class GradientFlips(Poison):
    """Flips that most raise a linearised GCN's loss on the unlabelled nodes, in ``rounds`` batches, greedily.

    The loss is :func:`lost_margin` on the nodes outside ``train_mask``, whose labels are those that the surrogate gives
    them on the clean graph (Metattack's "self"); the surrogate is fitted anew after every round. No flip leaves a node
    without an edge, none is undone.

    Args:
        rounds: gradients taken; a round makes its share of the budget, at most ``per_node`` flips at one node.
        through_training: whether the derivative runs through the fit (poisoning) or the weights of the clean graph
            stand still (evasion: the network is trained already).
        width: dimension the features are reduced to; more sees more and costs n^2 times as much.
        penalty: of the ridge regression; a victim that stops early is well likened to a strongly penalised one.
        delete: whether present edges may go.
        breadth: best candidates kept of each node.
        suspicion: of an adaptive attacker, who knows the defence: candidates it gives more than ``tolerated`` are left
            alone, and the most damaging of the others taken.
    """

    reads: ClassVar[tuple[str, ...]] = ("x", "y", "train_mask")
    rounds: int = 20
    through_training: bool = True
    width: int = 64
    penalty: float = 0.3
    per_node: int = 3
    delete: bool = True
    breadth: int = 16
    suspicion: Suspicion | None = None
    tolerated: float = 0.0

    def flips(self, data: Any) -> Tensor:
        """[2, f] pairs; fewer than the budget when no candidate is left.

        Raises:
            UsageError: MT473 beyond :data:`MOST` nodes.
        """
        count, n = self.count(data), data.num_nodes
        if n > MOST:
            raise UsageError("MT473", f"all pairs of {n} nodes are too many to scan", fix=f"at most {MOST}")
        x = reduced(data.x, self.width)
        x = x / x.norm(dim=1).mean().clamp_min(1e-12)
        one_hot = F.one_hot(data.y, int(data.y.max()) + 1).float()
        aimed = self.aims(data, x, one_hot)
        step, _ = propagation(data.edge_index, n)
        clean = step @ (step @ x)
        fixed = ridge(clean[data.train_mask], one_hot[data.train_mask], self.penalty)
        found, current = torch.zeros(2, 0, dtype=torch.long), data
        for chunk in torch.arange(count).tensor_split(min(self.rounds, count)) if count else ():
            gain, pairs = self._candidates(current, x, one_hot, aimed, fixed, found)
            owed = int(chunk[-1]) + 1 - found.shape[1]
            edges = undirected(current.edge_index, n)
            removed = torch.isin(_keys(pairs, n), _keys(edges, n))
            spare = torch.bincount(edges.flatten(), minlength=n) - 1
            chosen = pairs[:, _spread(pairs, gain, self.per_node, removed, spare)[:owed]]
            if not chosen.shape[1]:
                break
            found, current = torch.cat([found, chosen], 1), flipped(current, chosen)
        return found

    def aims(self, data: Any, x: Tensor, one_hot: Tensor) -> Tensor:
        """[n] the label each node is to lose: the surrogate's own on the clean graph where none is given."""
        step, _ = propagation(data.edge_index, len(x))
        features = step @ (step @ x)
        own = (features @ ridge(features[data.train_mask], one_hot[data.train_mask], self.penalty)).argmax(1)
        return torch.where(data.train_mask, data.y, own)

    def derivative(
        self, features: Tensor, data: Any, one_hot: Tensor, aimed: Tensor, fixed: Tensor
    ) -> Tensor:
        """[n, d] the derivative of the attacker's loss with respect to A A x."""
        f = features.detach().requires_grad_()
        with torch.enable_grad():
            weight = (
                ridge(f[data.train_mask], one_hot[data.train_mask], self.penalty)
                if self.through_training
                else fixed
            )
            rest = ~data.train_mask
            (p,) = torch.autograd.grad(lost_margin(f[rest] @ weight, aimed[rest]), f)
        return p

    def _candidates(
        self, data: Any, x: Tensor, one_hot: Tensor, aimed: Tensor, fixed: Tensor, done: Tensor
    ) -> tuple[Tensor, Tensor]:
        n = len(x)
        step, degree = propagation(data.edge_index, n)
        p = self.derivative(step @ (step @ x), data, one_hot, aimed, fixed)
        q, s, r = edge_gradient(step, degree, x, p)
        present = data.edge_index
        free = (degree[present[0]] > 2) & (degree[present[1]] > 2) if self.delete else present[0] < 0
        order = present[0].argsort()
        rows, columns, free = present[0][order], present[1][order], free[order]
        found: list[tuple[Tensor, Tensor]] = []
        size = max((1 << 22) // n, 1)
        for start in range(0, n, size):
            gain = q[start : start + size] @ s.T + r[start : start + size, None] + r
            first, last = torch.searchsorted(rows, torch.tensor([start, start + len(gain)])).tolist()
            at = rows[first:last] - start, columns[first:last]
            gain[at] = torch.where(free[first:last], -gain[at], -torch.inf)
            own = torch.arange(len(gain))
            gain[own, own + start] = -torch.inf
            for a, b in (done, done.flip(0)):
                inside = (a >= start) & (a < start + len(gain))
                gain[a[inside] - start, b[inside]] = -torch.inf
            value, column = gain.topk(min(self.breadth, n), 1)
            row = (own + start)[:, None].expand_as(column)
            found.append((value.flatten(), torch.stack([row.flatten(), column.flatten()])))
        value, pairs = torch.cat([v for v, _ in found]), torch.cat([p for _, p in found], 1)
        keys, place = (pairs.amin(0) * n + pairs.amax(0)).unique(return_inverse=True)
        best = torch.full((len(keys),), -torch.inf).scatter_reduce_(0, place, value, "amax")
        pairs = torch.stack([keys // n, keys % n])
        kept = best > 0
        if self.suspicion is not None:
            kept &= self.suspicion(data, pairs) <= self.tolerated
        return best[kept], pairs[:, kept]


def _spread(pairs: Tensor, gain: Tensor, most: int, removed: Tensor, spare: Tensor) -> Tensor:
    """The candidates in order of gain, without those that would be too many at one of their nodes.

    ``most`` of all kinds are taken at a node, and of those that are ``removed`` [c] as many as it has to ``spare`` [n].
    """
    order = gain.argsort(descending=True)
    kept = (_ranks(pairs[:, order]) < most).all(0)
    gone = removed[order].nonzero()[:, 0]
    kept[gone] &= (_ranks(pairs[:, order[gone]]) < spare[pairs[:, order[gone]]]).all(0)
    return order[kept]


def _ranks(pairs: Tensor) -> Tensor:
    """[2, c] how many pairs before each one, in their order, have the same node at either end."""
    ends = pairs.T.flatten()
    grouped = ends.argsort(stable=True)
    counts = torch.bincount(ends)
    rank = torch.empty_like(ends)
    rank[grouped] = torch.arange(len(ends)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return rank.view(-1, 2).T


@dataclass(kw_only=True)
class TargetedInsertions(Poison):
    """Edges that turn given nodes, the first-order answer to Nettack (Zügner, Akbarnejad & Günnemann 2018).

    With the surrogate's weights W of the clean graph and B = A X W, an edge (t, v) changes the margin of node t
    between its label c and the runner-up c' by about (B_vc' - B_vc) / sqrt((d_t + 1)(d_v + 1)); the best ``per_target``
    v are taken for every t. ``share`` bounds the whole.

    Args:
        targets: [t] nodes; by default unlabelled nodes at random, as many as the budget serves.
        per_target: edges each.
        width, penalty: of the surrogate.
    """

    reads: ClassVar[tuple[str, ...]] = ("x", "y", "train_mask")
    targets: Tensor | None = None
    per_target: int = 5
    width: int = 64
    penalty: float = 1e-3

    def flips(self, data: Any) -> Tensor:
        """[2, f] new edges, target by target."""
        count, n = self.count(data), data.num_nodes
        targets = self.targets
        if targets is None:
            others = (~data.train_mask).nonzero()[:, 0]
            draw = torch.Generator().manual_seed(self.seed)
            targets = others[torch.randperm(len(others), generator=draw)][: -(-count // self.per_target)]
        x = reduced(data.x, self.width)
        one_hot = F.one_hot(data.y, int(data.y.max()) + 1).float()
        step, degree = propagation(data.edge_index, n)
        half = step @ x
        weight = ridge((step @ half)[data.train_mask], one_hot[data.train_mask], self.penalty)
        scores, b = (step @ half)[targets] @ weight, half @ weight
        label = data.y[targets]
        other = scores.scatter(1, label[:, None], -torch.inf).argmax(1)
        gain = (b[:, other] - b[:, label]).T / ((degree[targets, None] + 1) * (degree + 1)).sqrt()
        row = torch.full((n,), -1)
        row[targets] = torch.arange(len(targets))
        near = data.edge_index[:, row[data.edge_index[0]] >= 0]
        gain[row[near[0]], near[1]] = -torch.inf
        gain[:, targets] = -torch.inf
        best = gain.topk(min(self.per_target, n - len(targets)), 1).indices
        pairs = torch.stack([targets.repeat_interleave(best.shape[1]), best.flatten()])
        return torch.stack([pairs.amin(0), pairs.amax(0)])[:, :count]


__all__ = [
    "DICE", "MOST", "GradientFlips", "InsertBetweenClasses", "Poison", "TargetedInsertions", "edge_gradient", "flipped",
    "injected", "lost_margin", "propagation", "rebuilt", "reduced", "ridge",
]  # fmt: skip
