"""EvolveGCN: weights that are the state of a recurrent cell, for graphs that change (Pareja et al. 2020)."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.data.graphs import geometric

geometric()
from torch_geometric.nn import LGConv  # noqa: E402 - only once it is known to be there
from torch_geometric.nn.conv.gcn_conv import gcn_norm  # noqa: E402


class MatrixCell(nn.Module):
    """A recurrent cell whose state is a matrix [rows, columns]; every column is treated alike but for its bias.

    GRU: z = s(W_z X + U_z H + B_z), r likewise, H~ = tanh(W X + U (r H) + B), H' = (1 - z) H + z H~ (entry by entry).
    LSTM: f, i, o likewise, C' = f C + i tanh(W X + U H + B), H' = o tanh(C').

    Args:
        rows, columns: of the state and of the input.
        kind: "gru" or "lstm".
    """

    def __init__(self, rows: int, columns: int, kind: Literal["gru", "lstm"]) -> None:
        super().__init__()
        gates, bound = 3 if kind == "gru" else 4, 1 / math.sqrt(rows)
        self.kind = kind
        self.see = nn.Parameter(torch.empty(gates, rows, rows).uniform_(-bound, bound))
        self.keep = nn.Parameter(torch.empty(gates, rows, rows).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(gates, rows, columns))

    def forward(self, given: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(H, C) -> (H', C'); a GRU leaves C as it is."""
        h, c = state
        seen = self.see @ given + self.bias
        if self.kind == "gru":
            z, r = (seen[:2] + self.keep[:2] @ h).sigmoid()
            return (1 - z) * h + z * (seen[2] + self.keep[2] @ (r * h)).tanh(), c
        f, i, o = (seen[:3] + self.keep[:3] @ h).sigmoid()
        c = f * c + i * (seen[3] + self.keep[3] @ h).tanh()
        return o * c.tanh(), c


class EvolvingConv(nn.Module):
    """A GCN layer whose weights W_t follow W_{t-1}: H_t = A_t X_t W_t, A_t the normalised adjacency with loops.

    Version "O": the weights are a cell's only input and output, W_t = LSTM(W_{t-1}). Version "H": they are its hidden
    state, W_t = GRU(summary(X_t), W_{t-1}), where the summary holds the ``outputs`` nodes with the largest
    y = X_t p / |p|, each times tanh(y); with fewer nodes the last one is repeated. Nodes need no identity: they may
    all be others at the next step.

    Args:
        inputs, outputs: widths.
        version: "O" or "H".
    """

    def __init__(self, inputs: int, outputs: int, version: Literal["O", "H"] = "O") -> None:
        super().__init__()
        bound = 1 / math.sqrt(outputs)
        self.first = nn.Parameter(torch.empty(inputs, outputs).uniform_(-bound, bound))
        self.cell = MatrixCell(inputs, outputs, "lstm" if version == "O" else "gru")
        self.version, self.outputs = version, outputs
        self.direction = (
            nn.Parameter(torch.empty(inputs).uniform_(-1, 1) / math.sqrt(inputs)) if version == "H" else None
        )
        self.propagate = LGConv(normalize=False)

    def summary(self, x: Tensor) -> Tensor:
        """[inputs, outputs] the nodes [n, inputs] that point most along the direction."""
        assert self.direction is not None
        score = x @ self.direction / self.direction.norm()
        best = score.topk(min(self.outputs, len(x))).indices
        best = torch.cat([best, best[-1:].expand(self.outputs - len(best))])
        return (x[best] * score[best, None].tanh()).T

    def weights(self, parts: tuple[Tensor, ...]) -> list[Tensor]:
        """[inputs, outputs] at each time, given the nodes [n_t, inputs] of each."""
        state, found = (self.first, torch.zeros_like(self.first)), []
        for part in parts:
            state = self.cell(state[0] if self.version == "O" else self.summary(part), state)
            found.append(state[0])
        return found

    def forward(self, x: Tensor, edge_index: Tensor, sizes: list[int]) -> Tensor:
        """[nodes of all times, inputs] -> [nodes of all times, outputs]."""
        parts = x.split(sizes)
        moved = torch.cat([part @ w for part, w in zip(parts, self.weights(parts), strict=True)])
        edges, weight = gcn_norm(edge_index, None, len(x), dtype=x.dtype)
        return self.propagate(moved, edges, weight)


class EvolveGCN(nn.Module):
    """Evolving layers with ReLU between, then a linear map; snapshots are given as one batch in the order of time.

    Args:
        inputs, hidden, outputs: widths.
        version: "O" or "H" (:class:`EvolvingConv`).
        layers: evolving ones.
        dropout: before every layer but the first.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        *,
        version: Literal["O", "H"] = "O",
        layers: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            EvolvingConv(hidden if i else inputs, hidden, version) for i in range(layers)
        )
        self.head = nn.Linear(hidden, outputs)
        self.dropout = dropout

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        """[nodes, inputs] -> [nodes, outputs]; ``batch`` [nodes] is the time of each node, 0, 1, ..., sorted."""
        sizes = torch.bincount(batch).tolist()
        for i, conv in enumerate(self.convs):
            x = F.relu(conv(F.dropout(x, self.dropout, self.training) if i else x, edge_index, sizes))
        return self.head(x)


__all__ = ["EvolveGCN", "EvolvingConv", "MatrixCell"]
