"""Functions on the numbers modulo p, taken apart by frequency: how much of each, how pure, at which phase."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def fourier_basis(p: int) -> Tensor:
    """[p, p] orthonormal rows for odd p: constant, then cosine and sine of frequencies 1 ... (p - 1) / 2; float64."""
    place = torch.arange(p, dtype=torch.float64)
    k = torch.arange(1, (p + 1) // 2, dtype=torch.float64)
    angle = 2 * math.pi * k[:, None] * place / p
    waves = torch.stack([angle.cos(), angle.sin()], 1).flatten(0, 1) * (2 / p) ** 0.5
    return torch.cat([torch.full((1, p), p**-0.5, dtype=torch.float64), waves])


def frequency_power(weights: Tensor) -> Tensor:
    """[..., p] -> [..., (p + 1) / 2] squared length at frequencies 0 ... (p - 1) / 2; in sum that of the weights."""
    basis = fourier_basis(weights.shape[-1]).to(weights.device)
    square = (weights.double() @ basis.T).square()
    return torch.cat([square[..., :1], square[..., 1:].unflatten(-1, (-1, 2)).sum(-1)], -1)


def purity(weights: Tensor) -> tuple[Tensor, Tensor]:
    """(largest share of one frequency [...], that frequency [...]) of weights [..., p]; the constant does not count.

    A random function has a share of about 2 log(p) / p; one of a single frequency has 1.
    """
    power = frequency_power(weights)[..., 1:]
    share, which = power.max(-1)
    return share / power.sum(-1).clamp(min=1e-300), which + 1


def phase(weights: Tensor, frequency: Tensor) -> Tensor:
    """[...] phi of the part r cos(2 pi k x / p + phi) of weights [..., p], with one frequency k [...] each."""
    spectrum = torch.fft.fft(weights.double(), dim=-1)
    return spectrum.gather(-1, frequency[..., None])[..., 0].angle()


def sum_coefficients(logits: Tensor) -> Tensor:
    """[..., p^2, p] logits of all pairs -> [..., (p + 1) / 2] least-squares coefficients on cos(2 pi k (x + y - c)/p).

    What addition by rotation makes of the logits; the other part of them is what it is not. Pairs in the order of
    :func:`microtome.data.modular.modular_pairs`.
    """
    p = logits.shape[-1]
    place = torch.arange(p)
    along = (place[:, None, None] + place[None, :, None] - place) % p  # [p, p, p]: x + y - c
    table = logits.double().reshape(*logits.shape[:-2], p**3)
    sums = torch.zeros(*table.shape[:-1], p, dtype=torch.float64)
    sums.index_add_(-1, along.flatten(), table)
    mean = sums / p**2  # over the p^2 entries of each value of x + y - c
    k = torch.arange((p + 1) // 2, dtype=torch.float64)
    waves = (2 * math.pi * k[:, None] * place / p).cos()
    return (mean @ waves.T) / waves.square().sum(1)


def sum_waves(p: int, frequencies: Tensor) -> Tensor:
    """[p^2, 2 k] orthonormal columns: cosine and sine of 2 pi f (x + y) / p over all pairs, for each frequency [k]."""
    place = torch.arange(p, dtype=torch.float64)
    total = (place[:, None] + place).flatten()
    angle = 2 * math.pi * total[:, None] * frequencies.double() / p
    return torch.cat([angle.cos(), angle.sin()], 1) * 2**0.5 / p


def gini(values: Tensor) -> Tensor:
    """[..., n] -> [...] inequality of lengths: 0 when all are equal, (n - 1) / n when one has everything."""
    ordered = values.double().sort(-1).values
    n = values.shape[-1]
    rank = 2 * torch.arange(1, n + 1, dtype=torch.float64) - n - 1
    return (ordered * rank).sum(-1) / (n * ordered.sum(-1)).clamp(min=1e-300)


__all__ = ["fourier_basis", "frequency_power", "gini", "phase", "purity", "sum_coefficients", "sum_waves"]
