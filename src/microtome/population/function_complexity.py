"""How complex is a function? Frequency, polynomial order and compressibility of its values on a square grid.

All take values [N, r, r] of N functions on :func:`grid` and ignore their mean and scale; a constant has complexity 0.
After Teney, Nicolicioiu, Hartmann & Abbasnejad 2024.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def grid(resolution: int) -> Tensor:
    """[resolution^2, 2] points of [-1, 1]^2, cell centres, row by row."""
    ticks = (torch.arange(resolution) + 0.5) / resolution * 2 - 1
    return torch.cartesian_prod(ticks, ticks)


def _weighted(coefficients: Tensor, size: Tensor) -> Tensor:
    """[N] mean of ``size`` [k, k] weighted by squared coefficients [N, k, k]; 0 where there are none."""
    power = coefficients.square().flatten(1)
    total = power.sum(1)
    return (power @ size.flatten().to(power)) / total.clamp(min=1e-300)


def _centred(values: Tensor) -> Tensor:
    """Without mean, of deviation 1; 0 for what is constant but for rounding."""
    v = values.double() - values.double().mean((1, 2), keepdim=True)
    spread = v.square().mean((1, 2), keepdim=True).sqrt()
    size = values.double().abs().amax((1, 2), keepdim=True)
    return torch.where(spread > 1e-6 * size, v / spread.clamp(min=1e-300), torch.zeros_like(v))


def mean_frequency(values: Tensor) -> Tensor:
    """[N] mean |frequency| in cycles over the grid's side, weighted by power.

    By the cosine transform (that of the function mirrored at the edges), so a function need not be periodic.
    """
    from scipy.fft import dctn

    r = values.shape[-1]
    found = torch.from_numpy(dctn(_centred(values).numpy(), axes=(1, 2), norm="ortho"))
    k = torch.arange(r).double() / 2
    return _weighted(found, (k[:, None] ** 2 + k**2).sqrt())


def mean_order(values: Tensor, highest: int | None = None) -> Tensor:
    """[N] mean order i + j of the polynomials p_i(x) p_j(y) it is made of, weighted by power.

    Polynomials orthonormal on the grid, up to ``highest`` in each direction (half the resolution); what is of higher
    order counts as ``2 highest``.
    """
    r = values.shape[-1]
    top = highest or r // 2
    ticks = (np.arange(r) + 0.5) / r * 2 - 1
    basis = torch.from_numpy(np.linalg.qr(np.polynomial.legendre.legvander(ticks, top))[0])
    v = _centred(values)
    found = torch.einsum("ri,nrs,sj->nij", basis, v, basis)
    i = torch.arange(top + 1).double()
    inside, whole = found.square().sum((1, 2)), v.square().sum((1, 2))
    mean = _weighted(found, i[:, None] + i)
    share = torch.where(whole > 0, inside / whole.clamp(min=1e-300), 1.0)
    return share * mean + (1 - share).clamp(min=0) * 2 * top


def phrases(text: bytes) -> int:
    """Number of phrases in the exhaustive history of a string (Lempel & Ziv 1976)."""
    count, start, n = 0, 0, len(text)
    while start < n:
        length = 1
        while start + length <= n and text.find(text[start : start + length], 0, start + length - 1) >= 0:
            length += 1
        count += 1
        start += length
    return count


def sequence_complexity(tokens: Tensor) -> Tensor:
    """[...] phrases a token of sequences [..., l] of up to 256 different tokens; 2 / l for one token over and over."""
    rows = tokens.reshape(-1, tokens.shape[-1]).to(torch.uint8)
    found = [phrases(row.numpy().tobytes()) / len(row) for row in rows]
    return torch.tensor(found, dtype=torch.float64).view(tokens.shape[:-1])


def compressibility(values: Tensor) -> Tensor:
    """[N] Lempel-Ziv complexity of the values against their median, read along rows and along columns.

    Phrases, less the 2 of a constant, over the n / log2 n of a random string: about 1 for noise.
    """
    n = values[0].numel()
    above = (values > values.flatten(1).median(1).values[:, None, None]).to(torch.uint8)
    scale = n / math.log2(n)
    found = [
        sum(phrases(part.contiguous().numpy().tobytes()) - 2 for part in (one, one.T)) / (2 * scale)
        for one in above
    ]
    return torch.tensor(found, dtype=torch.float64).clamp(min=0)


__all__ = ["compressibility", "grid", "mean_frequency", "mean_order", "phrases", "sequence_complexity"]
