"""Do two networks have the same units, the same small groups, or the same subspace? (Li, Yosinski et al. 2016).

Activations of two networks on the same inputs come as [n, d] and [n, e]: examples (or positions), units. Everything is
computed in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def _standard(a: Tensor) -> Tensor:
    """Columns of mean 0 and length 1; constant ones are 0."""
    centred = a.double() - a.double().mean(0)
    length = centred.norm(dim=0)
    scale = a.double().abs().amax(0).clamp(min=1e-300)
    return centred / length.masked_fill(length <= 1e-12 * scale * len(a) ** 0.5, torch.inf)


def unit_correlation(a: Tensor, b: Tensor) -> Tensor:
    """[d, e] correlation of every unit with every other; 0 for units that never change."""
    return _standard(a).T @ _standard(b)


def semi_matching(correlation: Tensor) -> tuple[Tensor, Tensor]:
    """For each row its best column, which several rows may share: (column [d], correlation [d])."""
    best = correlation.max(1)
    return best.indices, best.values


def bipartite_matching(correlation: Tensor) -> tuple[Tensor, Tensor]:
    """One-to-one, with the largest total correlation (Kuhn 1955): (column [d], correlation [d]) where d <= e."""
    from scipy.optimize import linear_sum_assignment

    _, column = linear_sum_assignment(correlation.cpu().numpy(), maximize=True)
    taken = torch.as_tensor(column)
    return taken, correlation.gather(1, taken[:, None])[:, 0]


def sparse_prediction(
    a: Tensor, b: Tensor, counts: Sequence[int], *, held_out: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """[len(counts), e] R^2 of each unit of b from its best few units of a.

    Orthogonal matching pursuit (Pati et al. 1993): the next unit is the one most correlated with what is left, then all
    coefficients are fitted anew by least squares, with an intercept. R^2 is of the pair ``held_out`` if given,
    else of the
    same examples; a unit of b that never changes has 0.

    Args:
        a: [n, d] of one network.
        b: [n, e] of the other.
        counts: numbers of predictors, at most d; d itself is ordinary least squares.
        held_out: (a, b) of other examples.
    """
    x, y = _standard(a), _standard(b)
    gram, cross = x.T @ x, x.T @ y  # [d, d], [d, e]
    d, e = cross.shape
    test_a, test_b = held_out or (a, b)
    mean, scale = a.double().mean(0), (a.double() - a.double().mean(0)).norm(dim=0)
    given = (test_a.double() - mean) / scale.masked_fill(~gram.diagonal().bool(), torch.inf)
    base, spread = b.double().mean(0), (b.double() - b.double().mean(0)).norm(dim=0)
    chosen, weights = torch.zeros(e, 0, dtype=torch.int64), torch.zeros(e, 0, dtype=gram.dtype)
    found: dict[int, Tensor] = {}
    for k in range(1, max(counts) + 1):
        if k == d:
            ridge = 1e-10 * torch.eye(d, dtype=gram.dtype)
            found[k] = _r2(given @ torch.linalg.solve(gram + ridge, cross), test_b, base, spread)
            break
        left = cross.T - (gram[chosen] * weights[..., None]).sum(1)  # [e, d]
        chosen = torch.cat([chosen, left.abs().scatter(1, chosen, -1).argmax(1, keepdim=True)], 1)
        inner = gram[chosen[:, :, None], chosen[:, None, :]] + 1e-10 * torch.eye(k, dtype=gram.dtype)
        weights = torch.linalg.solve(inner, cross.T.gather(1, chosen).unsqueeze(-1))[..., 0]  # [e, k]
        if k in counts:
            full = torch.zeros(e, d, dtype=gram.dtype).scatter(1, chosen, weights)
            found[k] = _r2(given @ full.T, test_b, base, spread)
    return torch.stack([found[k] for k in counts])


def _r2(predicted: Tensor, truth: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """[e] of predictions in units of ``scale`` around ``mean``."""
    target = truth.double() - mean
    error = (target - predicted * scale).square().sum(0)
    total = (truth.double() - truth.double().mean(0)).square().sum(0)
    return torch.where(total > 0, 1 - error / total.clamp(min=1e-300), 0.0)


def subspace_overlap(a: Tensor, b: Tensor, count: int) -> float:
    """Mean squared cosine of the principal angles between the leading principal subspaces of two networks.

    The ``count`` directions of examples [n] along which each network varies most: 1 when they span the same subspace,
    whatever the basis, count / n for unrelated ones.
    """
    parts = [
        torch.linalg.svd(part.double() - part.double().mean(0), full_matrices=False)[0][:, :count]
        for part in (a, b)
    ]
    return float((parts[0].T @ parts[1]).square().sum() / count)


def spectral_clusters(similarity: Tensor, count: int, *, restarts: int = 10, seed: int = 0) -> Tensor:
    """[m] cluster of each of m units: k-means on the leading eigenvectors of the normalised graph (Ng et al. 2002).

    Args:
        similarity: [m, m], symmetric, not negative.
        count: clusters.
        restarts: of k-means; the tightest wins.
        seed: of its starts.
    """
    degree = similarity.double().sum(1).clamp(min=1e-12).rsqrt()
    vectors = torch.linalg.eigh(degree[:, None] * similarity.double() * degree)[1][:, -count:]
    points = vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-12)
    draw, best = (
        torch.Generator().manual_seed(seed),
        (float("inf"), torch.zeros(len(points), dtype=torch.int64)),
    )
    for _ in range(restarts):
        centres = points[torch.randperm(len(points), generator=draw)[:count]]
        for _ in range(50):
            near = torch.cdist(points, centres).argmin(1)
            sums = torch.zeros_like(centres).index_add_(0, near, points)
            sizes = torch.bincount(near, minlength=count)[:, None]
            centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
        distance = float(torch.cdist(points, centres).amin(1).square().sum())
        best = min(best, (distance, near), key=lambda found: found[0])
    return best[1]


__all__ = [
    "bipartite_matching",
    "semi_matching",
    "sparse_prediction",
    "spectral_clusters",
    "subspace_overlap",
    "unit_correlation",
]
