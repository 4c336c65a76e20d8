"""LightGCL: LightGCN with a second view through a truncated SVD, and a contrast between the two (Cai et al. 2023)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.data.graphs import geometric
from microtome.errors import UsageError

geometric()
from torch_geometric.nn import LightGCN  # noqa: E402 - only once it is known to be there


def normalised_svd(edges: Tensor, users: int, items: int, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U [users, rank], s [rank] falling, V [items, rank] of A_ui / sqrt(d_u d_i); the matrix is kept sparse.

    Raises:
        UsageError: MT511 when the rank is not in 1..min(users, items) - 1.
    """
    if not 0 < rank < min(users, items):
        raise UsageError("MT511", f"rank {rank} is not in 1..{min(users, items) - 1}")
    from scipy.sparse import csr_array
    from scipy.sparse.linalg import svds

    u, i = edges.numpy()
    du, di = np.bincount(u, minlength=users), np.bincount(i, minlength=items)
    matrix = csr_array((1 / np.sqrt(du[u] * di[i]), (u, i)), shape=(users, items))
    left, s, right = svds(matrix, rank, v0=np.ones(min(users, items)))
    order = np.argsort(-s)
    a, b, c = (
        torch.from_numpy(np.ascontiguousarray(m)).float() for m in (left[:, order], s[order], right[order].T)
    )
    return a, b, c


class LightGCL(LightGCN):
    """Users and items embedded by propagation; items are the nodes after the users.

    Main view: x^l = D^-1/2 A D^-1/2 x^(l-1), the mean over l = 0..layers is the embedding (PyTorch Geometric's
    LightGCN). Second view: g_u^l = U S V^T x_i^(l-1), g_i^l = V S U^T x_u^(l-1), with the first ``rank`` singular
    triples; V^T x is formed first, so nothing dense of size users times items ever exists. Contrast: InfoNCE of a
    node's cosine with itself across the views against all nodes of its side. ``view="edges"`` is the comparison:
    the second view propagates along a random part of the edges.

    Args:
        users, items: how many.
        edges: [2, n] user, item of the training interactions.
        width: of an embedding.
        layers: of propagation.
        rank: of the second view.
        temperature: of the contrast.
        view: "svd" or "edges".
        dropout: share of the edges left out of the second view, with ``view="edges"``.
    """

    def __init__(
        self,
        users: int,
        items: int,
        edges: Tensor,
        width: int = 32,
        *,
        layers: int = 2,
        rank: int = 5,
        temperature: float = 0.2,
        view: Literal["svd", "edges"] = "svd",
        dropout: float = 0.2,
    ) -> None:
        super().__init__(users + items, width, layers)
        self.users, self.items, self.view = users, items, view
        self.temperature, self.dropout = temperature, dropout
        self.left: Tensor
        self.right: Tensor
        self.edges: Tensor
        self.register_buffer("edges", torch.stack([edges[0], edges[1] + users]))
        if view == "svd":
            left, s, right = normalised_svd(edges, users, items, rank)
            self.register_buffer("left", left * s.sqrt())
            self.register_buffer("right", right * s.sqrt())
        nn.init.normal_(self.embedding.weight, std=0.1)

    def layers_of(self, edges: Tensor) -> list[Tensor]:
        """[nodes, width] after 0, 1, ... rounds along the edges, in both directions."""
        both, found = torch.cat([edges, edges.flip(0)], 1), [self.embedding.weight]
        for conv in self.convs:
            found.append(conv(found[-1], both))
        return found

    def embeddings(self) -> Tensor:
        """[users + items, width] of the main view."""
        return torch.stack(self.layers_of(self.edges)).mean(0)

    def second_view(self, layers: list[Tensor]) -> Tensor:
        """[users + items, width] the other view of the layers of the main one."""
        if self.view == "edges":
            kept = torch.rand(self.edges.shape[1], device=self.edges.device) >= self.dropout
            return torch.stack(self.layers_of(self.edges[:, kept])).mean(0)
        found = [layers[0]]
        for x in layers[:-1]:
            u, i = x.split([self.users, self.items])
            found.append(torch.cat([self.left @ (self.right.T @ i), self.right @ (self.left.T @ u)]))
        return torch.stack(found).mean(0)

    def contrast(self, layers: list[Tensor], users: Tensor, items: Tensor) -> Tensor:
        """InfoNCE between the views, the mean over ``users`` plus that over ``items`` (their own numbers, from 0)."""
        one = F.normalize(torch.stack(layers).mean(0), dim=1).split([self.users, self.items])
        two = F.normalize(self.second_view(layers), dim=1).split([self.users, self.items])
        return sum(
            F.cross_entropy(other[rows] @ own.T / self.temperature, rows)
            for own, other, rows in zip(one, two, (users, items), strict=True)
        )  # type: ignore[return-value]

    def ranking_loss(
        self, user: Tensor, item: Tensor, *, weight: float = 0.1, penalty: float = 1e-4
    ) -> Tensor:
        """BPR with one random item for each interaction, plus ``weight`` times the contrast; the loss of a batch.

        Args:
            user, item: [b] interactions.
            weight: of the contrast; 0 is LightGCN.
            penalty: of the squared length of the embeddings in the batch.
        """
        layers = self.layers_of(self.edges)
        x = torch.stack(layers).mean(0)
        other = torch.randint(self.items, item.shape, device=item.device)
        mine, right, wrong = x[user], x[item + self.users], x[other + self.users]
        loss = F.softplus(((wrong - right) * mine).sum(1)).mean()
        first = self.embedding.weight
        size = first[user].square().sum(1) + first[item + self.users].square().sum(1)
        loss = loss + penalty * (size + first[other + self.users].square().sum(1)).mean()
        return loss + weight * self.contrast(layers, user.unique(), item.unique()) if weight else loss

    def scores(self, users: Tensor) -> Tensor:
        """[b, items] of some users."""
        x = self.embeddings()
        return x[users] @ x[self.users :].T


__all__ = ["LightGCL", "normalised_svd"]
