"""Sequences that decoders with drawn weights go on to say, and how complex they are."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from microtome.nn.sequence_transformer import SequenceTransformer
from microtome.population import Population
from microtome.population.function_complexity import sequence_complexity

TOKENS = 256


def said(activation: str, gains: tuple[float, ...], seeds: range, starts: int, length: int) -> np.ndarray:
    """[gains, draws] mean phrases a token of what follows each of ``starts`` tokens, always the likeliest."""
    drawn = Population.of(partial(SequenceTransformer, TOKENS, length, activation=activation), seeds)
    n = len(seeds)
    population = drawn.copy(list(range(n)) * len(gains))
    population.buffers["gain"] = torch.tensor(gains).repeat_interleave(n)
    draw = torch.Generator().manual_seed(seeds[0])
    tokens = torch.randint(TOKENS, (starts, 1), generator=draw).expand(len(population), -1, -1)
    while tokens.shape[-1] < length:
        likely = population.evaluate(lambda model: lambda x: model(x)[:, -1].argmax(-1), tokens, private=True)
        tokens = torch.cat([tokens, likely[..., None]], -1)
    return sequence_complexity(tokens).mean(-1).view(len(gains), n).numpy()


def of_chance(seed: int, count: int, length: int) -> float:
    """The same of tokens drawn at random."""
    draw = torch.Generator().manual_seed(seed)
    return float(sequence_complexity(torch.randint(TOKENS, (count, length), generator=draw)).mean())


__all__ = ["of_chance", "said"]
