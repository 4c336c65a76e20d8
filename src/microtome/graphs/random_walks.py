"""Second-order biased random walks (Grover & Leskovec 2016, node2vec), all walks a step at a time.

From t to v the next node u is drawn among the neighbours of v with weight 1/p if u = t, 1 if u is a neighbour of t, 1/q
otherwise. Each walk proposes a neighbour and keeps it with its weight over the largest, which is exact and needs no
table of pairs of edges. PyTorch Geometric's walks need a compiled library.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from microtome.errors import UsageError


class Walker:
    """Draws walks on one graph.

    Args:
        edge_index: [2, edges]; give both directions for an undirected graph.
        nodes: how many.
        p: return parameter; large avoids going straight back.
        q: in-out parameter; below 1 leads away, above 1 stays near.

    Raises:
        UsageError: MT456 for a parameter that is not above 0.
    """

    def __init__(self, edge_index: Tensor, nodes: int, *, p: float = 1.0, q: float = 1.0) -> None:
        if p <= 0 or q <= 0:
            raise UsageError(
                "MT456", f"p={p:g} and q={q:g} must be above 0", fix="1 and 1 are unbiased walks"
            )
        source, target = edge_index.cpu().numpy().astype(np.int64)
        keys = np.unique(source * nodes + target)  # sorted: neighbours of a node lie together
        self.nodes, self.p, self.q = nodes, p, q
        self._keys, self._target = keys, keys % nodes
        self._start = np.searchsorted(keys, np.arange(nodes + 1) * nodes)

    def _neighbour(self, at: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A neighbour of each, drawn uniformly; itself where there is none."""
        first, count = self._start[at], self._start[at + 1] - self._start[at]
        place = first + (rng.random(len(at)) * count).astype(np.int64)
        return np.where(count > 0, self._target[np.minimum(place, len(self._target) - 1)], at)

    def adjacent(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Whether there is an edge from each a to its b."""
        key = a * self.nodes + b
        place = np.minimum(np.searchsorted(self._keys, key), len(self._keys) - 1)
        return self._keys[place] == key

    def walks(self, starts: Tensor, length: int, *, seed: int = 0) -> Tensor:
        """[walks, length + 1] nodes, from each of ``starts``; a node without neighbours stays where it is."""
        rng = np.random.default_rng(seed)
        found = np.empty((len(starts), length + 1), dtype=np.int64)
        found[:, 0] = starts.cpu().numpy()
        if length:
            found[:, 1] = self._neighbour(found[:, 0], rng)
        largest = max(1.0, 1 / self.p, 1 / self.q)
        for step in range(2, length + 1):
            before, here = found[:, step - 2], found[:, step - 1]
            waiting = np.arange(len(found))
            while len(waiting):
                t, v = before[waiting], here[waiting]
                proposed = self._neighbour(v, rng)
                weight = np.where(
                    proposed == t, 1 / self.p, np.where(self.adjacent(t, proposed), 1.0, 1 / self.q)
                )
                stuck = self._start[v + 1] == self._start[v]
                kept = (rng.random(len(waiting)) * largest < weight) | stuck
                found[waiting[kept], step] = proposed[kept]
                waiting = waiting[~kept]
        return torch.from_numpy(found)

    def law(self, t: int, v: int) -> Tensor:
        """[nodes] the exact probability of each next node after t, v."""
        near = self._target[self._start[v] : self._start[v + 1]]
        weight = np.where(
            near == t, 1 / self.p, np.where(self.adjacent(np.full_like(near, t), near), 1.0, 1 / self.q)
        )
        found = np.zeros(self.nodes)
        found[near] = weight / weight.sum()
        return torch.from_numpy(found)


def windows(walks: Tensor, size: int) -> Tensor:
    """[walks x (length + 2 - size), size] every run of ``size`` nodes, the first of which is the centre."""
    return walks.unfold(1, size, 1).reshape(-1, size)


__all__ = ["Walker", "windows"]
