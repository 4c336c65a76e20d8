"""Margins of networks without biases, against what their weights cost; and the cost as a penalty.

A network that is homogeneous of degree d in its units' weights has the same margin in every scale once it is divided
by the d-th power of a norm. The norm that lets units be shared out freely is sum over units of |omega|^d, where
omega is everything that belongs to one unit (Morwani et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor


def unit_norms(parameters: Mapping[str, Tensor]) -> Tensor:
    """[..., width] length of all that belongs to each hidden unit: every parameter is [..., rows, width]."""
    return (sum(p.square().sum(-2) for p in parameters.values()) + 1e-12).sqrt()  # type: ignore[union-attr]


def power_penalty(weight: float, power: float) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """For ``Recipe(penalty=)``: weight times the sum over units of |omega|^power."""
    return lambda parameters: weight * unit_norms(parameters).pow(power).sum(-1)


def margins(logits: Tensor, targets: Tensor) -> Tensor:
    """[..., n, k] and [..., n] -> [..., n] logit of the target less the largest other; float64."""
    own = targets.expand(logits.shape[:-1])[..., None]
    others = logits.double().scatter(-1, own, -math.inf).amax(-1)
    return logits.double().gather(-1, own)[..., 0] - others


def modular_margin(p: int) -> float:
    """Largest least margin of a quadratic network on x + y mod p whose sum over units of |omega|^3 is 1.

    sqrt(2 / 27) / (sqrt(p) (p - 1)), for p > 2 prime and at least 4 (p - 1) units; every unit is then of one frequency
    and all frequencies have an equal part.
    """
    return math.sqrt(2 / 27) / (math.sqrt(p) * (p - 1))


def normalised_margin(logits: Tensor, targets: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """[...] least margin over the examples, divided by the sum over units of |omega|^3."""
    return margins(logits, targets).amin(-1) / unit_norms(parameters).double().pow(3).sum(-1)


__all__ = ["margins", "modular_margin", "normalised_margin", "power_penalty", "unit_norms"]
