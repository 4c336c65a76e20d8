"""DAGNN: transform once, propagate far, and let every node choose how far (Liu, Gao & Ji 2020)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.data.graphs import geometric

geometric()
from torch_geometric.nn import MessagePassing  # noqa: E402 - only once it is known to be there
from torch_geometric.nn.conv.gcn_conv import gcn_norm  # noqa: E402


class GatedPropagation(MessagePassing):
    """H_k = A^k Z for k = 0..hops, A the symmetrically normalised adjacency with loops; out_v = sum_k g_vk H_vk.

    The gate is g_vk = sigmoid(H_vk . s), one vector s for all hops and nodes.

    Args:
        channels: width of Z.
        hops: how far.
    """

    def __init__(self, channels: int, hops: int) -> None:
        super().__init__(aggr="add")
        self.hops = hops
        self.gate = nn.Linear(channels, 1, bias=False)

    def hop_features(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """[nodes, hops + 1, channels] what each hop gives."""
        edges, weight = gcn_norm(edge_index, edge_weight, len(x), dtype=x.dtype)
        found = [x]
        for _ in range(self.hops):
            found.append(self.propagate(edges, x=found[-1], weight=weight))
        return torch.stack(found, 1)

    def gates(self, hops: Tensor) -> Tensor:
        """[nodes, hops + 1] of [nodes, hops + 1, channels], each 0..1."""
        return self.gate(hops)[..., 0].sigmoid()

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """[nodes, channels] -> [nodes, channels]."""
        hops = self.hop_features(x, edge_index, edge_weight)
        return (self.gates(hops)[..., None] * hops).sum(1)

    def message(self, x_j: Tensor, weight: Tensor) -> Tensor:
        """The neighbour's row times the edge's weight."""
        return weight[:, None] * x_j


class DAGNN(nn.Module):
    """A perceptron, then gated propagation of its logits.

    Args:
        inputs, hidden, outputs: widths.
        hops: how far the logits travel.
        dropout: before each linear map.
    """

    def __init__(
        self, inputs: int, hidden: int, outputs: int, *, hops: int = 10, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
        self.propagation = GatedPropagation(outputs, hops)
        self.dropout = dropout

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Any = None) -> Tensor:
        """[nodes, inputs] -> [nodes, outputs] logits."""
        x = F.relu(self.first(F.dropout(x, self.dropout, self.training)))
        x = self.second(F.dropout(x, self.dropout, self.training))
        return self.propagation(x, edge_index, edge_weight)


__all__ = ["DAGNN", "GatedPropagation"]
