"""Random numbers that depend on nothing but what they are for: an example id, a seed and a draw.

A counter-based hash instead of a generator, so that noise is the same in every batch, on every device and
in any order of the rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def row_uniform(rows: Tensor, seed: int, draw: int = 0) -> Tensor:
    """A uniform number in [0, 1) for each example id, from a counter-based hash (splitmix64).

    Depends on nothing but (id, seed, draw): the same in every batch, on every device, in any order.

    Args:
        rows: [n] int64, or any shape of counters.
    """
    offset = (seed * 0x5851F42D4C957F2D + draw * 0x14057B7EF767814F + 0x1E3779B97F4A7C15) % (1 << 62)
    value = rows.to(torch.int64) * -0x61C8864680B583EB + offset
    for multiplier, shift in ((-0x40A7B892E31B1A47, 30), (-0x6B2FB644ECCEEE15, 27)):
        value = (value ^ ((value >> shift) & ((1 << (64 - shift)) - 1))) * multiplier
    value = value ^ ((value >> 31) & ((1 << 33) - 1))
    return ((value >> 11) & ((1 << 53) - 1)).double() / (1 << 53)


def row_normal(rows: Tensor, seed: int, draw: int = 0) -> Tensor:
    """A standard normal number for each counter, by Box and Muller; float64, as :func:`row_uniform`."""
    radius = (-2 * torch.log1p(-row_uniform(rows, seed, 2 * draw))).sqrt()
    return radius * torch.cos(2 * math.pi * row_uniform(rows, seed, 2 * draw + 1))


def row_counters(rows: Tensor, size: int) -> Tensor:
    """[n, size] counters, distinct for every entry of every example."""
    return rows[:, None] * size + torch.arange(size, device=rows.device)


def wide(value: Tensor) -> Tensor:
    """As float64 (float32 where the device has no float64)."""
    return value.float() if value.device.type == "mps" else value.double()
