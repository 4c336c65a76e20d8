"""A small decoder drawn as GPT-2 is drawn, whose activation and layer norm can be changed (Teney et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microtome.nn.function_mlp import activation_of

SPREAD = 0.02
"""Of GPT-2's first weights, at its width of 768."""


class Block(nn.Module):
    """Attention to all earlier tokens, then a layer of four times the width; each adds to the stream."""

    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.heads = heads
        self.attend, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        for layer in (self.attend, self.out, self.up, self.down):
            nn.init.normal_(layer.weight, std=SPREAD * (768 / width) ** 0.5)
            nn.init.zeros_(layer.bias)
        for layer in (self.out, self.down):  # as many are added to the stream
            layer.weight.data.div_((2 * depth) ** 0.5)

    def mix(self, x: Tensor) -> Tensor:
        """[n, l, width] -> [n, l, width]: causal attention."""
        query, key, value = self.attend(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        score = query @ key.mT / query.shape[-1] ** 0.5  # [n, heads, l, l]
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        seen = score.masked_fill(later, float("-inf")).softmax(-1) @ value
        return self.out(seen.transpose(1, 2).flatten(2))

    def forward(self, stream: Tensor, gain: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        """[n, l, width] -> [n, l, width]."""
        stream = stream + self.mix(gain * F.layer_norm(stream, stream.shape[-1:]))
        units = self.up(gain * F.layer_norm(stream, stream.shape[-1:]))
        return stream + self.down(activation(units))


class SequenceTransformer(nn.Module):
    """Tokens [n, l] -> logits [n, l, tokens] of the next; at each position from the tokens up to it.

    Learnt positions, layer norm before each part, residual connections, the unembedding tied to the embedding. Weights
    are as large at any width as GPT-2's at 768, so that units start with its inputs.

    ``gain`` multiplies what the layer norms of the blocks give: norm undoes the size of the weights before it, so that
    size is set here. It is a buffer, and may differ between the members of a population.

    Args:
        tokens: how many there are.
        length: of the longest sequence.
        activation: one of :data:`microtome.nn.function_mlp.ACTIVATIONS`.
    """

    gain: Tensor

    def __init__(
        self,
        tokens: int = 256,
        length: int = 64,
        *,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        self.activation = activation_of(activation)
        self.embed = nn.Parameter(torch.randn(tokens, width) * SPREAD)
        self.position = nn.Parameter(torch.randn(length, width) * SPREAD)
        self.blocks = nn.ModuleList(Block(width, heads, depth) for _ in range(depth))
        self.register_buffer("gain", torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        stream = self.embed[x] + self.position[: x.shape[1]]
        for block in self.blocks:
            stream = block(stream, self.gain, self.activation)
        return F.layer_norm(stream, stream.shape[-1:]) @ self.embed.T


__all__ = ["Block", "SequenceTransformer"]
