"""A network that knows nothing but colours: one learned vector a colour, summed over a graph's nodes and rounds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from microtome.graphs.refinement import feature_colours, refine


class ColourNetwork(nn.Module):
    """Graph logits from the histogram of its refined colours: the plainest network that 1-WL bounds.

    After :meth:`fit_colours` every colour of the training graphs, of each round, has a row of a table; a graph's rows
    are summed, scaled by its number of nodes, and mapped to logits. Colours never seen before count as nothing.

    Args:
        hidden: width of the table.
        outputs: classes.
        rounds: of refinement.
        features: whether nodes are first coloured by x; otherwise by nothing.
    """

    def __init__(self, hidden: int, outputs: int, *, rounds: int = 3, features: bool = True) -> None:
        super().__init__()
        self.rounds, self.features = rounds, features
        self.register_buffer("known", torch.zeros(0, dtype=torch.long))
        self.table = nn.Parameter(torch.zeros(0, hidden))
        self.norm, self.head = nn.LayerNorm(hidden), nn.Linear(hidden, outputs)
        self.hidden = hidden

    def colours(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """[rounds + 1, nodes] int64."""
        found = [feature_colours(x if self.features else None, len(x))]
        for _ in range(self.rounds):
            found.append(refine(found[-1], edge_index))
        return torch.stack(found)

    def fit_colours(self, x: Tensor, edge_index: Tensor) -> ColourNetwork:
        """Give every colour of these graphs a row; returns itself."""
        self.known = self.colours(x, edge_index).unique()
        self.table = nn.Parameter(torch.randn(len(self.known), self.hidden) / self.hidden**0.5)
        return self

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        """[nodes, d] -> [graphs, outputs]."""
        colours = self.colours(x, edge_index).flatten()
        place = torch.searchsorted(self.known, colours).clamp_max(max(len(self.known) - 1, 0))
        seen = self.known[place] == colours
        owner = batch.repeat(self.rounds + 1)[seen]
        graphs = int(batch.max()) + 1
        total = torch.zeros(graphs, self.hidden, dtype=self.table.dtype).index_add(
            0, owner, self.table[place[seen]]
        )
        sizes = torch.bincount(batch, minlength=graphs).to(total.dtype)
        return self.head(self.norm(total / sizes.sqrt()[:, None]))


__all__ = ["ColourNetwork"]
