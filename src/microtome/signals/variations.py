"""Families of changed inputs, and the one that removes an input: paths, noise, masks by rank, a blank."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from microtome.signals.expression import Constant, Site, Transform, Variation
from microtome.signals.noise import row_counters, row_normal, row_uniform


@dataclass(frozen=True)
class Blank(Transform):
    """Every input replaced by one value: what the network says of nothing."""

    value: float = 0.0

    def apply(self, x: Tensor, site: Site) -> Tensor:
        """[n, ...] of the value."""
        return torch.full_like(x, self.value)


@dataclass(frozen=True)
class Path(Variation):
    """Points on the straight line from a baseline to the input: baseline + node * (x - baseline)."""

    nodes: tuple[float, ...]
    baseline: float = 0.0
    count: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", len(self.nodes))

    def copies(self, x: Tensor, rows: Tensor, start: int, stop: int) -> Tensor:
        """[n, stop - start, ...]."""
        nodes = torch.tensor(self.nodes[start:stop], dtype=x.dtype, device=x.device)
        nodes = nodes.reshape(-1, *[1] * (x.dim() - 1))
        return self.baseline + nodes * (x[:, None] - self.baseline)


@dataclass(frozen=True)
class GaussianNoise(Variation):
    """Copies with normal noise; its standard deviation is a share of each example's own range (max - min)."""

    count: int
    share: float
    seed: int = 0

    def copies(self, x: Tensor, rows: Tensor, start: int, stop: int) -> Tensor:
        """[n, stop - start, ...]; the noise depends on the example ids alone."""
        flat = x.flatten(1)
        low, high = torch.aminmax(flat, dim=1, keepdim=True)
        counters = row_counters(rows.to(x.device), flat.shape[1])
        drawn = [row_normal(counters, self.seed, draw).to(x.dtype) for draw in range(start, stop)]
        noise = torch.stack(drawn, dim=1) * (self.share * (high - low))[:, None]
        return x[:, None] + noise.reshape(len(x), stop - start, *x.shape[1:])


@dataclass(frozen=True)
class RankedMask(Variation):
    """Inputs of which only some parts are left, the rest at a baseline, in the order of a ranking.

    Copy j < count / 2 holds the first share (j + 1) / (count / 2 + 1) of the parts and nothing else
    (insertion); the other half lacks exactly these (deletion).

    Args:
        ranking: [n, parts] int64 per example, 0 for the part that goes first; or the seed of a random order.
        count: copies, even.
        parts: the dimension of an example that a part spans: 0 for pixels over all channels, -1 for tokens
            over all their features, None when every number is a part of its own.
    """

    ranking: Constant | int
    count: int
    parts: int | None = None
    baseline: float = 0.0

    def copies(self, x: Tensor, rows: Tensor, start: int, stop: int) -> Tensor:
        """[n, stop - start, ...]."""
        shape = list(x.shape[1:])
        if self.parts is not None:
            shape[self.parts] = 1
        size, half = math.prod(shape), self.count // 2
        if isinstance(self.ranking, Constant):
            rank = self.ranking.for_rows(rows).to(x.device)
        else:
            rank = random_ranking(rows.to(x.device), size, self.ranking)
        copy = torch.arange(start, stop, device=x.device)
        first = ((copy % half + 1) * size / (half + 1)).round().reshape(-1, 1)
        kept = (rank[:, None] < first) != (copy >= half).reshape(-1, 1)
        return torch.where(kept.reshape(len(x), stop - start, *shape), x[:, None], self.baseline)


def random_ranking(rows: Tensor, size: int, seed: int) -> Tensor:
    """[n, size] int64: a random order of the parts of each example, from its id."""
    return rank_of(row_uniform(row_counters(rows, size), seed))


def rank_of(values: Tensor) -> Tensor:
    """[n, size] -> [n, size] int64: 0 for the largest entry of each row."""
    return values.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
