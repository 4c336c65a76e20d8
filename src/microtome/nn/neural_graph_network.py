"""A network that reads networks: messages along the weights of a neural graph, both ways (Kofinas et al. 2024)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.data.graphs import geometric
from microtome.graphs.neural_graphs import ACTIVATIONS

geometric()
from torch_geometric.nn import MessagePassing, global_max_pool, global_mean_pool  # noqa: E402 - once it is there


class ModulatedConv(MessagePassing):
    """Messages scale(e_uv) * W h_u + shift(e_uv): a weight multiplies what passes, as it does in the network itself.

    h_v' = h_v + MLP(h_v, mean and maximum of the messages), then e_uv' = e_uv + ReLU(A e_uv + B h_u' + C h_v').

    Args:
        width: of nodes and edges.
    """

    def __init__(self, width: int) -> None:
        super().__init__(aggr=["mean", "max"])
        self.modulate = nn.Linear(width, 2 * width)
        self.other = nn.Linear(width, width)
        self.update_node = nn.Sequential(nn.Linear(3 * width, width), nn.ReLU(), nn.Linear(width, width))
        self.edge, self.ends = nn.Linear(width, width), nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, edge_index: Tensor, edge: Tensor) -> tuple[Tensor, Tensor]:
        """Nodes [n, width] and edges [m, width] -> both anew."""
        heard = self.propagate(edge_index, x=self.other(x), edge=edge)
        x = x + self.update_node(torch.cat([x, heard], 1))
        before, after = self.ends(x).chunk(2, 1)
        return x, edge + F.relu(self.edge(edge) + before[edge_index[0]] + after[edge_index[1]])

    def message(self, x_j: Tensor, edge: Tensor) -> Tensor:
        """What comes along an edge."""
        scale, shift = self.modulate(edge).chunk(2, 1)
        return scale * x_j + shift


class NeuralGraphNetwork(nn.Module):
    """Answers about whole networks, given as batches of :class:`microtome.graphs.neural_graphs.NeuralGraph` data.

    A neuron begins as its bias, its layer, what follows it, and its place if it is an input or an output; an edge as
    its weights and its direction. The mean and the maximum over neurons are read out, so the order of hidden neurons
    is not seen, and networks of any shape with the same inputs and outputs may be given.

    Args:
        outputs: numbers a network is answered by.
        places: inputs and outputs of the networks that are read, together.
        weights: numbers of an edge (1 without convolutions).
        width, rounds: of the messages.
        layers: most layers of a network that is read, inputs included.
    """

    def __init__(
        self,
        outputs: int,
        places: int,
        *,
        weights: int = 1,
        width: int = 32,
        rounds: int = 3,
        layers: int = 16,
    ) -> None:
        super().__init__()
        self.bias, self.weight = nn.Linear(1, width), nn.Linear(weights + 2, width)
        self.place = nn.Embedding(places + 1, width)
        self.layer = nn.Embedding(layers, width)
        self.activation = nn.Embedding(len(ACTIVATIONS), width)
        self.convs = nn.ModuleList(ModulatedConv(width) for _ in range(rounds))
        self.head = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, outputs))

    def forward(self, data: Any) -> Tensor:
        """A batch of graphs -> [graphs, outputs]."""
        x = (
            self.bias(data.x)
            + self.place(data.place)
            + self.layer(data.layer)
            + self.activation(data.activation)
        )
        kind = torch.stack([data.skip.to(x), torch.zeros_like(data.skip, dtype=x.dtype)], 1)
        ahead = torch.cat([data.edge_attr, kind], 1)
        back = torch.cat([data.edge_attr, kind + kind.new_tensor([0.0, 1.0])], 1)
        edge = self.weight(torch.cat([ahead, back]))
        edge_index = torch.cat([data.edge_index, data.edge_index.flip(0)], 1)
        for conv in self.convs:
            x, edge = conv(x, edge_index, edge)
        return self.head(torch.cat([global_mean_pool(x, data.batch), global_max_pool(x, data.batch)], 1))


__all__ = ["ModulatedConv", "NeuralGraphNetwork"]
