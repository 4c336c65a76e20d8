"""Scorers of facts beside PyTorch Geometric's: R-GCN in front of DistMult, and the full bilinear form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.data.graphs import geometric

geometric()
from torch_geometric.nn import FastRGCNConv, RGCNConv  # noqa: E402 - only once it is known to be there
from torch_geometric.nn.kge import KGEModel  # noqa: E402


@dataclass(frozen=True)
class Diagonal:
    """<e_h, w_r, e_t> with entities [n, d] and relations [m, d] that something else has made."""

    entities: Tensor
    relations: Tensor

    def __call__(self, head: Tensor, relation: Tensor, tail: Tensor) -> Tensor:
        """[b] scores."""
        return (self.entities[head] * self.relations[relation] * self.entities[tail]).sum(-1)

    @property
    def num_nodes(self) -> int:
        """How many entities."""
        return len(self.entities)

    def all_scores(self, head: Tensor, relation: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        """Every entity as the tail and as the head: twice [b, entities]."""
        r = self.relations[relation]
        return (self.entities[head] * r) @ self.entities.T, (self.entities[tail] * r) @ self.entities.T


class RelationalAutoencoder(KGEModel):
    """R-GCN encodes the entities, DistMult scores with what it gives (Schlichtkrull et al. 2018).

    h_v' = sigma(W_0 h_v + sum_r sum_{u in N_r(v)} W_r h_u / |N_r(v)|), each relation once in its direction and once
    backwards; f(h, r, t) = <e_h, w_r, e_t> with e what the last layer gives. A fact that is trained on is also an
    edge of the graph, where the encoder could read it off; so edges are dropped at random in training, before the
    neighbours are counted.

    Args:
        num_nodes, num_relations, hidden_channels: of entities, of relations, of both embeddings.
        edge_index, edge_type: [2, n], [n] the facts messages run along.
        layers: of the encoder; no nonlinearity after the last.
        bases: W_r is a mix of so many matrices; None gives every relation its own.
        blocks: W_r is block-diagonal with so many blocks; excludes ``bases``.
        edge_dropout: share of the edges that are left out of an update.
    """

    def __init__(
        self,
        num_nodes: int,
        num_relations: int,
        hidden_channels: int,
        edge_index: Tensor,
        edge_type: Tensor,
        *,
        layers: int = 2,
        bases: int | None = None,
        blocks: int | None = None,
        edge_dropout: float = 0.4,
    ) -> None:
        super().__init__(num_nodes, num_relations, hidden_channels)
        self.edge_index: Tensor
        self.edge_type: Tensor
        self.register_buffer("edge_index", torch.cat([edge_index, edge_index.flip(0)], 1))
        self.register_buffer("edge_type", torch.cat([edge_type, edge_type + num_relations]))
        self.convs = nn.ModuleList(
            FastRGCNConv(
                hidden_channels, hidden_channels, 2 * num_relations, num_bases=bases, num_blocks=blocks
            )
            if blocks
            else RGCNConv(hidden_channels, hidden_channels, 2 * num_relations, num_bases=bases)
            for _ in range(layers)
        )
        self.edge_dropout = edge_dropout
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot's uniform, as DistMult's."""
        nn.init.xavier_uniform_(self.node_emb.weight)
        nn.init.xavier_uniform_(self.rel_emb.weight)
        for conv in self.convs:
            conv.reset_parameters()  # type: ignore[operator]

    def encode(self) -> Tensor:
        """[entities, hidden] what the layers make of the embeddings."""
        edges, types = self.edge_index, self.edge_type
        if self.training and self.edge_dropout:
            half = len(types) // 2  # a fact goes in both directions or not at all
            kept = (torch.rand(half, device=types.device) >= self.edge_dropout).repeat(2)
            edges, types = edges[:, kept], types[kept]
        x = self.node_emb.weight
        for i, conv in enumerate(self.convs):
            x = conv(F.relu(x) if i else x, edges, types)
        return x

    def decoder(self) -> Diagonal:
        """What scores facts with the entities as they are encoded now; gradients go through."""
        return Diagonal(self.encode(), self.rel_emb.weight)

    def forward(self, head_index: Tensor, rel_type: Tensor, tail_index: Tensor) -> Tensor:
        """[b] scores."""
        return self.decoder()(head_index, rel_type, tail_index)


class Bilinear(KGEModel):
    """f(h, r, t) = e_h^T M_r e_t with a full matrix a relation (RESCAL; the general form of Yang et al. 2015).

    Args:
        num_nodes, num_relations, hidden_channels: entities, relations, width of an entity.
        margin: of the ranking loss.
    """

    def __init__(self, num_nodes: int, num_relations: int, hidden_channels: int, margin: float = 1.0) -> None:
        super().__init__(num_nodes, num_relations, hidden_channels)
        self.rel_emb = nn.Embedding(num_relations, hidden_channels**2)
        self.margin = margin
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot's uniform, each relation as a matrix of its own."""
        nn.init.xavier_uniform_(self.node_emb.weight)
        bound = math.sqrt(3 / self.hidden_channels)
        nn.init.uniform_(self.rel_emb.weight, -bound, bound)

    def matrices(self) -> Tensor:
        """[relations, hidden, hidden]."""
        return self.rel_emb.weight.view(-1, self.hidden_channels, self.hidden_channels)

    def forward(self, head_index: Tensor, rel_type: Tensor, tail_index: Tensor) -> Tensor:
        """[b] scores."""
        moved = torch.einsum("bd,bde->be", self.node_emb(head_index), self.matrices()[rel_type])
        return (moved * self.node_emb(tail_index)).sum(-1)

    def loss(self, head_index: Tensor, rel_type: Tensor, tail_index: Tensor) -> Tensor:
        """The margin between a fact and one corruption, as of PyTorch Geometric's DistMult."""
        true = self(head_index, rel_type, tail_index)
        false = self(*self.random_sample(head_index, rel_type, tail_index))
        return F.margin_ranking_loss(true, false, torch.ones_like(true), margin=self.margin)

    def all_scores(self, head: Tensor, relation: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        """Every entity as the tail and as the head: twice [b, entities]."""
        entities, m = self.node_emb.weight, self.matrices()[relation]
        after = torch.einsum("bd,bde->be", entities[head], m)
        before = torch.einsum("be,bde->bd", entities[tail], m)
        return after @ entities.T, before @ entities.T


__all__ = ["Bilinear", "Diagonal", "RelationalAutoencoder"]
