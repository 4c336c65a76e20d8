"""Gram matrices of whole activations in fixed blocks of rows, so that pairs do not depend on how data is cut.

The minibatch estimator of HSIC averages over pairs of rows within a batch; if the batch were the slice, its
value would change with the memory budget. Blocks are fixed instead: rows ``block * i`` to ``block * (i + 1)
- 1`` by example id. A slice reduces each block it holds whole to a small matrix at once; rows of a block
that is cut by the end of a slice travel on raw, until the fold has all of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from microtome.signals import Signal, activation, derive, rows


class BlockGrams(NamedTuple):
    """One layer's blocks in one slice."""

    blocks: Tensor
    """[b] int64, which blocks are whole."""
    centred: Tensor
    """[b, block, block] float64, U-centred Gram matrices with zero diagonal."""
    ids: Tensor
    """[r] int64, rows of blocks that are not."""
    rest: Tensor
    """[r, d] their activations, flattened."""


def block_grams(layer: str, block: int) -> Signal:
    """:class:`BlockGrams` of a layer's whole activation, all positions and units, flattened."""
    return derive(_block_grams, activation(layer), rows, block=block, name="block_grams")


def _block_grams(activation: Tensor, rows: Tensor, block: int) -> BlockGrams:
    flat = activation.reshape(activation.shape[0], -1)
    flat = flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat
    rows = rows.to("cpu")
    n = len(rows)
    first = int(rows[0]) if n else 0
    lead = min(-first % block, n)
    whole = (n - lead) // block
    if n and int(rows[-1]) - first == n - 1:  # consecutive rows, the usual case: blocks are views
        body = slice(lead, lead + whole * block)
        left = torch.cat([torch.arange(lead), torch.arange(body.stop, n)])
        blocks = torch.div(rows[body][::block], block, rounding_mode="floor")
        centred = u_centred(flat[body].reshape(whole, block, flat.shape[1])) if whole else _none(flat, block)
        return BlockGrams(blocks, centred, rows[left], flat[left.to(flat.device)])
    return BlockGrams(rows[:0], _none(flat, block), rows, flat.clone())


def _none(flat: Tensor, block: int) -> Tensor:
    return torch.zeros(0, block, block, dtype=torch.float64, device=flat.device)


def u_centred(x: Tensor) -> Tensor:
    """[b, n, d] -> [b, n, n] float64: the U-centred linear Gram matrix of each block, n >= 4.

    U-centring (Szekely & Rizzo 2014) gives HSIC of Song et al. 2012 as a plain inner product of two such
    matrices over n (n - 3), and does not see a shift of all rows. So where a common mean would drown what
    tells rows apart, the first row is taken away; rows equal up to rounding give exactly zero.
    """
    eps = torch.finfo(x.dtype).eps
    x = x.double() if x.shape[2] <= 2048 else x
    gram = (x @ x.mT).double()
    scale = gram.abs().amax((1, 2))
    centred = _centre(gram)
    poor = centred.abs().amax((1, 2)) < 1e-3 * scale
    if bool(poor.any()):
        y = x[poor] - x[poor, :1]  # any shift will do; the difference of near numbers is exact
        # What is left of equal rows is the rounding of the forward pass.
        still = y.square().sum(2).amax(1) <= (8 * eps) ** 2 * scale[poor]
        centred[poor] = torch.where(still[:, None, None], 0.0, _centre((y @ y.mT).double()))
    return centred


def _centre(gram: Tensor) -> Tensor:
    n = gram.shape[1]
    gram = gram.clone()
    gram.diagonal(dim1=1, dim2=2).zero_()
    sums = gram.sum(2)
    total = sums.sum(1)[:, None, None]
    gram -= (sums[:, :, None] + sums[:, None, :]) / (n - 2)
    gram += total / ((n - 1) * (n - 2))
    gram.diagonal(dim1=1, dim2=2).zero_()
    return gram
