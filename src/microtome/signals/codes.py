"""On/off patterns of activation functions."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from microtome.signals import Signal, activation, derive
from microtome.signals.noise import row_uniform
from microtome.subject import Layer, Subject

_PIECEWISE = ("relu", "threshold")
_SMOOTH = ("elu", "silu", "mish", "hardswish")


def switches(subject: Subject) -> tuple[Layer, ...]:
    """Activation functions whose values have the sign of what goes in, or are 0."""
    parts = (*_PIECEWISE, *_SMOOTH)
    return tuple(x for x in subject.layers if x.kind == "activation" and _named(x, parts))


def piecewise_linear(layer: Layer) -> bool:
    """Whether the pattern names a linear region."""
    return _named(layer, _PIECEWISE)


def on_off(layer: str, bits: int, seed: int = 0) -> Signal:
    """[n, b] uint8, 1 where a value is above 0; at ``bits`` fixed random places when there are more."""
    return derive(_on_off, activation(layer), bits=bits, seed=seed)


def _on_off(activation: Tensor, bits: int, seed: int) -> Tensor:
    flat = activation.reshape(activation.shape[0], -1)
    if flat.shape[1] > bits:
        flat = flat[:, _places(flat.shape[1], bits, seed).to(flat.device)]
    return (flat > 0).to(torch.uint8)


@lru_cache(maxsize=64)
def _places(size: int, bits: int, seed: int) -> Tensor:
    return row_uniform(torch.arange(size), seed, 41).topk(bits, largest=False).indices.sort().values


def _named(layer: Layer, parts: tuple[str, ...]) -> bool:
    return any(part in layer.operation.lower() for part in parts)


def repeated_share(distance: Tensor) -> float:
    """Share of rows that are at distance 0 of an earlier one; ``distance`` is [n, n]."""
    return float((distance == 0).tril(-1).any(1).double().mean())


def nearest_votes(distance: Tensor, labels: Tensor, neighbours: int) -> tuple[float, float]:
    """Leave-one-out nearest neighbours: (accuracy of their majority, share of them of the row's own class).

    Ties of distance go to the smaller index and ties of votes to the nearer rows.
    """
    n = len(distance)
    key = distance.double() * n + torch.arange(n)  # whole numbers: exact
    key.fill_diagonal_(torch.inf)
    near = labels[key.topk(neighbours, dim=1, largest=False).indices]  # [n, neighbours], nearest first
    weight = 1 - torch.arange(neighbours, dtype=torch.float64) / (100 * neighbours**2)
    votes = torch.zeros(n, int(labels.max()) + 1, dtype=torch.float64)
    votes.scatter_add_(1, near, weight.expand(n, -1))
    right = (votes.argmax(1) == labels).double().mean()
    return float(right), float((near == labels[:, None]).double().mean())
