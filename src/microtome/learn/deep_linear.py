"""How a deep linear network learns, in closed form (Saxe, McClelland & Ganguli 2014).

White inputs, squared error, L balanced layers: along each singular mode of the input-output correlation, of value s,
the strength a of the network's map obeys tau da/dt = L a^(2 - 2/L) (s - a), whatever the other modes do. Here tau is
1 / learning rate in units of steps; the loss is :func:`microtome.learn.squared_error.half_squared_error`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from microtome.errors import UsageError


def mode_strength(
    times: Tensor, s: Tensor, start: Tensor, *, layers: int = 2, tau: float | Tensor = 1.0
) -> Tensor:
    """Strength of modes at given times.

    Two layers: a(t) = s e^(2st/tau) / (e^(2st/tau) - 1 + s/a0). One layer: an exponential. More layers: the equation
    is integrated to a relative error of 1e-8.

    Args:
        times: [t] in steps.
        s: [...] singular values, above 0.
        start: [...] strengths at time 0, above 0.
        layers: weight matrices.
        tau: 1 / learning rate.

    Returns:
        [t, ...] in float64.
    """
    if layers < 1 or bool((s <= 0).any()) or bool((start <= 0).any()):
        raise UsageError(
            "MT461", "mode strengths need s > 0, start > 0 and a layer", fix="leave out modes of s = 0"
        )
    s, start = torch.broadcast_tensors(s.double(), start.double())
    scaled = (times.double() / tau).reshape(-1, *[1] * s.dim())
    if layers == 1:
        return s - (s - start) * torch.exp(-scaled)
    if layers == 2:
        decay = torch.exp(-2 * s * scaled)
        return s / (1 + (s / start - 1) * decay)
    return _integrated(scaled.flatten(), s, start, layers)


def _integrated(times: Tensor, s: Tensor, start: Tensor, layers: int) -> Tensor:
    from scipy.integrate import solve_ivp

    target, power = s.reshape(-1).numpy(), 2 - 2 / layers

    def slope(_: float, a: np.ndarray) -> np.ndarray:
        return np.asarray(layers * np.maximum(a, 0) ** power * (target - a))

    span = (0.0, max(float(times.max()), 1e-12))
    at = np.unique(times.numpy())
    found = solve_ivp(
        slope, span, start.reshape(-1).numpy(), t_eval=at, rtol=1e-8, atol=1e-12, method="LSODA"
    )
    values = torch.from_numpy(found.y.T[np.searchsorted(at, times.numpy())])
    return values.reshape(-1, *s.shape)


def learning_time(s: Tensor, start: Tensor, share: float = 0.5, tau: float = 1.0) -> Tensor:
    """Steps until a mode of a two-layer network has reached a share of its value: about 1/s for equal starts.

    t = tau / (2 s) ln(a (s - a0) / (a0 (s - a))), a = share s.
    """
    a = share * s
    return tau / (2 * s) * torch.log(a * (s - start) / (start * (s - a)))


def modes(x: Tensor, y: Tensor, count: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(left [k, m], s [m], right [d, m]): singular vectors and values of Sigma_yx = mean of y x^T, largest first."""
    u, s, vh = torch.linalg.svd(y.T @ x / len(x), full_matrices=False)
    return u[:, :count], s[:count], vh[:count].T


def strengths(product: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """[..., m] how much of each mode a map [..., k, d] has: the diagonal of left^T W right."""
    return torch.einsum("km,...kd,dm->...m", left, product, right)


def whitened(x: Tensor, components: int) -> Tensor:
    """[n, components] the leading principal components of [n, d], centred, each of variance 1."""
    centred = x - x.mean(0)
    u, _, _ = torch.linalg.svd(centred, full_matrices=False)
    return u[:, :components] * len(x) ** 0.5


def sufficient(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """As many examples as x has dimensions, with the same correlations: a linear network learns the same from them.

    x must be white. Returns x' = sqrt(d) I [d, d] and y' [d, k] with mean y' x'^T = mean y x^T; the least-squares
    part of the loss that no map removes is left out.
    """
    d = x.shape[1]
    return d**0.5 * torch.eye(d, dtype=x.dtype), d**0.5 * (y.T @ x / len(x)).T


__all__ = ["learning_time", "mode_strength", "modes", "strengths", "sufficient", "whitened"]
