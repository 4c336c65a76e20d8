"""Local augmentation: a generator of what a neighbour might look like, and networks that read it beside the node.

Liu, Ying, Dong, Lan, Ma, Liu, Rong, Chen & Huang 2022 (LA-GNN). A conditional variational autoencoder is fitted ahead,
to pairs of neighbours: it maximises E_q log p(x_u | z, x_v) - KL(q(z | x_u, x_v) || N(0, 1)) over edges u -> v, so that
p(x_u | x_v) can be sampled for nodes with few neighbours. At every step of training each node gets one sample more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Sampler = Callable[[], Tensor]
"""One more row of features for each node, [n, d], drawn anew at every call."""


class NeighbourGenerator(nn.Module):
    """p(x_u | z, x_v) and q(z | x_u, x_v), both perceptrons of one hidden layer.

    Args:
        features: d of x.
        hidden, latent: widths of the perceptrons and of z.
    """

    def __init__(self, features: int, *, hidden: int = 64, latent: int = 8) -> None:
        super().__init__()
        self.latent = latent
        self.encoder = nn.Sequential(
            nn.Linear(2 * features, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent + features, hidden), nn.ReLU(), nn.Linear(hidden, features)
        )

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """[n, d] a neighbour of each node, sampled unless z [n, latent] is given."""
        z = torch.randn(len(x), self.latent, dtype=x.dtype, device=x.device) if z is None else z
        return self.decoder(torch.cat([z, x], 1))

    def bound(self, neighbour: Tensor, node: Tensor) -> Tensor:
        """Mean negative evidence bound of pairs [m, d], up to a constant: squared error / 2 + KL."""
        mean, log_variance = self.encoder(torch.cat([neighbour, node], 1)).chunk(2, 1)
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        error = (self(node, z) - neighbour).square().sum(1) / 2
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
        return (error + divergence).mean()

    def fit(
        self, data: Any, *, epochs: int = 60, rate: float = 0.005, batch_size: int = 2048
    ) -> NeighbourGenerator:
        """Train by Adam on the edges of ``data``; no labels are read. Frozen after."""
        optimiser = torch.optim.Adam(self.parameters(), rate)
        for _ in range(epochs):
            for some in torch.randperm(data.edge_index.shape[1]).split(batch_size):
                u, v = data.edge_index[:, some]
                optimiser.zero_grad()
                self.bound(data.x[u], data.x[v]).backward()
                optimiser.step()
        return self.eval().requires_grad_(False)


def real_neighbours(data: Any) -> Sampler:
    """A sampler without generator: features of a neighbour drawn at random; a node's own where it has none."""
    order = data.edge_index[1].argsort(stable=True)
    source = data.edge_index[0][order]
    count = torch.bincount(data.edge_index[1], minlength=data.num_nodes)
    first = count.cumsum(0) - count

    def draw() -> Tensor:
        place = first + (torch.rand(len(count)) * count).long()
        chosen = torch.where(count > 0, source[place.clamp_max(len(source) - 1)], torch.arange(len(count)))
        return data.x[chosen]

    return draw


class Augmented(nn.Module):
    """Two first layers, one for the features and one for one more sample a node, side by side, then a second layer.

    In eval mode the answers over ``samples`` draws are averaged, as probabilities; outputs are log-probabilities.

    Args:
        layer: (inputs, outputs) -> a convolution called with (x, edge_index).
        sampler: None for a network that reads the features twice, as wide as the others.
    """

    def __init__(
        self,
        layer: Callable[[int, int], nn.Module],
        inputs: int,
        hidden: int,
        outputs: int,
        sampler: Sampler | None,
        *,
        samples: int = 4,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.own, self.other = layer(inputs, hidden), layer(inputs, hidden)
        self.last = layer(2 * hidden, outputs)
        self.sampler, self.samples, self.dropout = sampler, samples, dropout

    def once(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """[n, outputs] logits with one draw."""
        more = x if self.sampler is None else self.sampler()
        first = torch.cat([self.own(x, edge_index), self.other(more, edge_index)], 1).relu()
        return self.last(F.dropout(first, self.dropout, self.training), edge_index)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """[n, inputs] -> [n, outputs]."""
        if self.training or self.sampler is None:
            return self.once(x, edge_index).log_softmax(1)
        drawn = torch.stack([self.once(x, edge_index).log_softmax(1) for _ in range(self.samples)])
        return drawn.logsumexp(0) - torch.tensor(float(self.samples)).log()


__all__ = ["Augmented", "NeighbourGenerator", "Sampler", "real_neighbours"]
