"""How far classes have shrunk to points, of one feature table or of every member's at once: [..., n, d] and labels [n].

In float64; the instruments ``represent/vci`` and ``represent/class_collapse`` read the same of one network in a pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def scatters(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """(total, between, within) covariance [..., d, d], each over n; total = between + within."""
    h = features.double()
    h = h - h.mean(-2, keepdim=True)
    means, share = _means(h, labels, classes)
    between = means.mT @ (means * share[:, None])
    total = h.mT @ h / h.shape[-2]
    return total, between, total - between


def _means(h: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """(means [..., k, d], share [k]) of the classes that occur."""
    hot = F.one_hot(labels, classes).double()
    hot = hot[:, hot.any(0)]
    return (hot / hot.sum(0)).T @ h, hot.mean(0)


def vci(features: Tensor, labels: Tensor, classes: int, *, rtol: float = 1e-10) -> Tensor:
    """[...] variability collapse index 1 - tr(pinv(S_T) S_B) / rank(S_B) (Xu & Liu 2023).

    0: classes are points after the best linear map; 1: their means are equal, which is what it is set to when S_B is 0.
    The same after any invertible linear map. With n not many times d it reads low, whatever the labels.

    Args:
        features: [..., n, d].
        labels: [n].
        classes: k.
        rtol: directions of less than this share of the largest variance are taken for rounding.
    """
    total, between, _ = scatters(features, labels, classes)
    explained = (torch.linalg.pinv(total, rtol=rtol, hermitian=True) * between).sum((-2, -1))
    values = torch.linalg.eigvalsh(between)
    rank = (values > rtol * values[..., -1:].clamp(min=1e-300)).sum(-1)
    alive = values[..., -1] > 1e-300
    return torch.where(alive, 1 - explained / rank.clamp(min=1), 1.0)


def nc1(features: Tensor, labels: Tensor, classes: int, *, rtol: float = 1e-10) -> Tensor:
    """[...] within-class over between-class covariance, tr(S_W pinv(S_B)) / k (Papyan, Han & Donoho 2020)."""
    _, between, within = scatters(features, labels, classes)
    return (torch.linalg.pinv(between, rtol=rtol, hermitian=True) * within).sum((-2, -1)) / classes


def cdnv(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """[...] class-distance normalised variance (Galanti, Gyorgy & Hutter 2022).

    Mean over pairs of classes of (v_c + v_c') / (2 |m_c - m_c'|^2), v_c the mean squared distance to the class mean.
    """
    h = features.double()
    hot = F.one_hot(labels, classes).double()
    hot = hot[:, hot.any(0)]
    means, _ = _means(h, labels, classes)
    spread = (h.square().sum(-1, keepdim=True).mT @ (hot / hot.sum(0)))[..., 0, :] - means.square().sum(-1)
    one, two = torch.triu_indices(hot.shape[1], hot.shape[1], 1)
    apart = (means[..., one, :] - means[..., two, :]).square().sum(-1)
    return ((spread[..., one] + spread[..., two]) / (2 * apart)).mean(-1)


def probe_loss(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """[...] least mean squared error of an affine map from features to one-hot labels, summed over classes.

    For balanced classes (1 - 1/k) - tr(pinv(S_T) S_B) / k, so VCI is this loss but for two constants.
    """
    h = features.double()
    h = h - h.mean(-2, keepdim=True)
    y = F.one_hot(labels, classes).double()
    y = (y - y.mean(0)).expand(*h.shape[:-2], *y.shape)
    u, s, _ = torch.linalg.svd(h, full_matrices=False)
    u = u * (s > 1e-5 * s[..., :1]).unsqueeze(-2)
    return (y - u @ (u.mT @ y)).square().sum((-2, -1)) / h.shape[-2]


__all__ = ["cdnv", "nc1", "probe_loss", "scatters", "vci"]
