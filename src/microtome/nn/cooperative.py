"""Co-GNN: every node decides in every layer whether it listens and whether it broadcasts (Finkelshtein et al. 2024)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.data.graphs import geometric

geometric()
from torch_geometric.nn import MessagePassing  # noqa: E402 - only once it is known to be there

ACTIONS = ("standard", "listen", "broadcast", "isolate")


class CooperativeConv(MessagePassing):
    """A mean-aggregating convolution along the edges whose source broadcasts and whose target listens.

    An action network (a convolution of its own, then a linear map) gives four logits a node; the action is drawn by
    straight-through Gumbel softmax while training and is the largest logit otherwise. Action "standard" listens and
    broadcasts. out_v = W_1 x_v + W_2 mean over kept edges of x_u; 0 where none is kept.

    Args:
        inputs, outputs: widths.
        hidden: width of the action network.
        temperature: of the Gumbel softmax.
        action: what the action network does with neighbours: "mean", or "sum", by which it sees how many there are.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        hidden: int = 16,
        temperature: float = 0.5,
        action: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__(aggr="add")
        self.own, self.other = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs, bias=False)
        self.see_own, self.see_other = nn.Linear(inputs, hidden), nn.Linear(inputs, hidden, bias=False)
        # In a sum a message's constant part counts the neighbours; in a mean it would say nothing.
        self.count = nn.Parameter(torch.zeros(hidden)) if action == "sum" else None
        self.decide = nn.Linear(hidden, len(ACTIONS))
        self.temperature = temperature

    def mean(self, x: Tensor, edge_index: Tensor, weight: Tensor) -> Tensor:
        """[nodes, d] weighted mean over incoming edges; 0 without weight."""
        total = self.propagate(edge_index, x=x, weight=weight)
        count = torch.zeros(len(x), dtype=x.dtype).index_add(0, edge_index[1], weight)
        # Weights are 0 or 1; a smaller floor would make the slope where nothing is kept so many times too steep.
        return total / count.clamp_min(1.0)[:, None]

    def actions(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """[nodes, 4] one-hot over :data:`ACTIONS`."""
        every = x.new_ones(edge_index.shape[1])
        if self.count is None:
            seen = self.see_other(self.mean(x, edge_index, every))
        else:
            message = torch.cat([self.see_other(x), x.new_ones(len(x), 1)], 1)
            total = self.propagate(edge_index, x=message, weight=every)
            seen = total[:, :-1] + total[:, -1:] * self.count
        logits = self.decide(F.relu(self.see_own(x) + seen))
        if self.training:
            return F.gumbel_softmax(logits, self.temperature, hard=True)
        return F.one_hot(logits.argmax(1), len(ACTIONS)).to(x.dtype)

    def kept(self, actions: Tensor, edge_index: Tensor) -> Tensor:
        """[edges] 1 where the source broadcasts and the target listens."""
        listens, broadcasts = actions[:, 0] + actions[:, 1], actions[:, 0] + actions[:, 2]
        return broadcasts[edge_index[0]] * listens[edge_index[1]]

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """[nodes, inputs] -> [nodes, outputs]."""
        kept = self.kept(self.actions(x, edge_index), edge_index)
        return self.own(x) + self.other(self.mean(x, edge_index, kept))

    def message(self, x_j: Tensor, weight: Tensor) -> Tensor:
        """The neighbour's row times the edge's weight."""
        return weight[:, None] * x_j


__all__ = ["ACTIONS", "CooperativeConv"]
