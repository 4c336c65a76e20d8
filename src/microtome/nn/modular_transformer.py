"""One-layer transformer for a binary operation, read after the pair, without layer norm (Nanda 2023)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.nn.modular_mlp import one_hot


class ModularTransformer(nn.Module):
    """Tokens x, y, "=" -> logits of the p answers at "=": [n, 2] whole numbers -> [n, p].

    Embedding and learnt positions, causal attention (at the last position: over all three tokens), a ReLU layer,
    both with residual connections, unembedding. No layer norm and no biases but those of the ReLU layer, as in the
    paper.

    Args:
        p: numbers, so p + 1 tokens and p answers.
        width: of the residual stream.
        heads: of attention; they share the width.
        hidden: units of the ReLU layer.
    """

    def __init__(self, p: int, width: int = 128, heads: int = 4, hidden: int = 512) -> None:
        super().__init__()
        self.p, self.heads = p, heads
        self.embed = nn.Parameter(torch.randn(p + 1, width) / width**0.5)
        self.position = nn.Parameter(torch.randn(3, width) / width**0.5)
        self.query, self.key, self.value, self.out = (
            nn.Parameter(torch.randn(width, width) / width**0.5) for _ in range(4)
        )
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.unembed = nn.Parameter(torch.randn(width, p) / width**0.5)

    def hidden(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Residual stream after attention [n, width] and what the ReLU units say [n, hidden], both at "="."""
        # Keys and values are made once a token, not once a pair: there are p + 1 of them at each position.
        stream = self.embed[:-1, None] + self.position[:2]  # [p, 2, width]
        last = self.embed[-1] + self.position[2]  # "=", the same for every pair
        query = (last @ self.query).view(self.heads, -1)

        def score(tokens: Tensor) -> Tensor:
            key = (tokens @ self.key).unflatten(-1, (self.heads, -1))
            return (key * query).sum(-1) / query.shape[-1] ** 0.5

        known = torch.cat([score(stream), stream @ self.value], -1).unbind(1)  # two of [p, heads + width]
        here = torch.cat([score(last), last @ self.value]).expand(len(x), -1)
        rows = [one_hot(x[:, i], self.p).to(last.dtype) @ known[i] for i in range(2)]
        seen = torch.stack([*rows, here], 1)  # [n, 3, heads + width]
        share = seen[..., : self.heads].softmax(1)[..., None]
        mixed = (share * seen[..., self.heads :].unflatten(-1, (self.heads, -1))).sum(1).flatten(1)
        after = last + mixed @ self.out
        return after, F.relu(self.up(after))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        stream, units = self.hidden(x)
        return (stream + self.down(units)) @ self.unembed


__all__ = ["ModularTransformer"]
