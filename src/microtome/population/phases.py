"""Phases of training: ranks of features, which curves move together, and how often a curve surges."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from microtome.errors import UsageError
from microtome.population.population import Population
from microtome.population.slices import cut


def feature_ranks(features: Tensor) -> tuple[Tensor, Tensor]:
    """(effective, numerical) rank of features [..., n, d], centred: each [...].

    Effective: exp of the entropy of the eigenvalues of the covariance, over their sum (Roy & Vetterli 2007, on
    variances). Numerical: eigenvalues beyond (max(n, d) eps)^2 of the largest, with the eps of the features' type.
    A layer that does not vary has rank 0.
    """
    n, d = features.shape[-2:]
    x = features.double()
    x = x - x.mean(-2, keepdim=True)
    values = torch.linalg.eigvalsh(x.mT @ x if d <= n else x @ x.mT).clamp(min=0)
    least = max(
        (max(n, d) * torch.finfo(features.dtype).eps) ** 2, max(n, d) * torch.finfo(torch.float64).eps
    )
    kept = values * (values > least * values.amax(-1, keepdim=True))
    total = kept.sum(-1, keepdim=True)
    p = kept / total.clamp(min=torch.finfo(torch.float64).tiny)
    effective = torch.special.entr(p).sum(-1).exp()
    return torch.where(total[..., 0] > 0, effective, 0.0), (kept > 0).sum(-1)


def layer_ranks(population: Population, inputs: Tensor, *, private: bool = False) -> tuple[Tensor, Tensor]:
    """([N, layers], [N, layers]) effective and numerical rank of what every ReLU gives, for networks in a row.

    Args:
        population: of ``nn.Sequential`` networks.
        inputs: [n, ...], or with ``private`` [N, n, ...]; everything after the first dimensions is flattened.
        private: whether each member has inputs of its own.
    """
    h, found, start = inputs, [], 0
    for i, layer in enumerate(population.template.children()):
        if isinstance(layer, nn.ReLU):
            h = cut(population, start, i + 1).predict(h, private=private or start > 0)
            found.append(feature_ranks(h.flatten(2)))
            start = i + 1
    effective, numerical = zip(*found, strict=True)
    return torch.stack(effective, 1), torch.stack(numerical, 1)


def smoothed(curve: Tensor, width: int) -> Tensor:
    """[t, N] running means over ``width`` (odd) records of curves [t, N]; shorter at the ends."""
    half = width // 2
    total = torch.cat([torch.zeros_like(curve[:1]), curve.cumsum(0)])
    at = torch.arange(len(curve))
    low, high = (at - half).clamp(min=0), (at + half + 1).clamp(max=len(curve))
    return (total[high] - total[low]) / (high - low).to(curve)[:, None]


def lagged_correlation(a: Tensor, b: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """([N], [N]) largest |Pearson correlation| of a(t) with b(t + lag), and its lag, for |lag| <= ``most``.

    Args:
        a: [t, N] curves, one a member; so is b. A constant curve correlates 0 with all.
        b: [t, N].
        most: records; at least three must overlap.

    Raises:
        UsageError: MT487 when curves are too short for the lag, or differ in shape.
    """
    if a.shape != b.shape or len(a) - most < 3:
        raise UsageError(
            "MT487",
            f"curves {list(a.shape)} and {list(b.shape)} cannot be shifted by {most}",
            fix="give curves of one shape, at least 3 records longer than the largest lag",
        )

    def pearson(x: Tensor, y: Tensor) -> Tensor:
        x, y = x - x.mean(0), y - y.mean(0)
        scale = (x.square().sum(0) * y.square().sum(0)).sqrt()
        return torch.where(scale > 0, (x * y).sum(0) / scale.clamp(min=1e-300), 0.0)

    x, y, t = a.double(), b.double(), len(a)
    lags = range(-most, most + 1)
    found = torch.stack([pearson(x[max(-k, 0) : t - max(k, 0)], y[max(k, 0) : t - max(-k, 0)]) for k in lags])
    best = found.abs().argmax(0)
    return found.gather(0, best[None])[0].abs(), best - most


def surges(curve: Tensor, rise: float) -> Tensor:
    """[N] how often a curve [t, N] rises by at least ``rise`` between a plateau, or a fall, and the next one.

    A record begins a plateau where the curve stands within rise / 4 of the record ``max(1, t // 20)`` earlier, or
    below it; what it gains from the end of one plateau to the end of the next counts once.
    """
    window = max(1, len(curve) // 20)
    step = curve[window:] - curve[:-window]
    rising = step > rise / 4  # [t - window, N]
    count = torch.zeros(curve.shape[1], dtype=torch.int64)
    for i in range(curve.shape[1]):
        flags = [False, *rising[:, i].tolist(), False]
        starts = [k for k in range(1, len(flags)) if flags[k] and not flags[k - 1]]
        ends = [k for k in range(1, len(flags)) if flags[k - 1] and not flags[k]]
        gains = [curve[e - 2 + window, i] - curve[s - 1, i] for s, e in zip(starts, ends, strict=True)]
        count[i] = sum(float(g) >= rise for g in gains)
    return count


__all__ = ["feature_ranks", "lagged_correlation", "layer_ranks", "smoothed", "surges"]
