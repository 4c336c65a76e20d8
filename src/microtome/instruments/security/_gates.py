"""Signs that an attack fails for its own reasons, so that its number is too good to be believed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from microtome.finding import Quantity
from microtome.statistics import wilson
from microtome.subject import Subject

COLUMNS = ("check", "measured", "value", "passed")
Gate = tuple[str, str, float, bool]


def flat_slope(slope: Tensor) -> Tensor:
    """[n] 1.0 where the loss has no slope at all."""
    return (slope.flatten(1) == 0).all(1).double()


def gates_of(
    accuracy: np.ndarray,
    single: np.ndarray,
    noisy: np.ndarray,
    dull: float,
    unbounded: float,
    means: Sequence[float],
    counts: Sequence[int],
    *,
    slack: float,
) -> tuple[Gate, ...]:
    """The checks (Athalye, Carlini & Wagner 2018; Carlini et al. 2019), each with what was measured.

    Args:
        accuracy, single, noisy: [strengths] under PGD, FGSM and noise.
        dull: share of right answers without a slope.
        unbounded: accuracy left by a strength that can turn any input into any other.
        means: mean loss after each number of steps in ``counts``.
        slack: excess of accuracy that chance explains.
    """
    single_excess, noise_excess = float((accuracy - single).max()), float((accuracy - noisy).max())
    growth = min((b - a for a, b in itertools.pairwise(means)), default=0.0)
    grows = growth >= -0.01 * max(means[0], 1e-3)
    excess = "largest excess of accuracy"
    return (
        ("slopes are not zero", "share of right answers without a slope", dull, dull <= 0.05),
        ("PGD is not weaker than FGSM", excess, single_excess, single_excess <= slack),
        ("noise does not beat PGD", excess, noise_excess, noise_excess <= slack),
        ("the loss grows with steps", f"least growth, {tuple(counts)} steps, nat", growth, grows),
        ("an unbounded attack breaks everything", "accuracy that is left", unbounded, unbounded <= 0.05),
    )


def share_of(hits: np.ndarray) -> Quantity:
    """Share of examples with Wilson's interval."""
    low, high = wilson(int(hits.sum()), len(hits))
    return Quantity(value=float(hits.mean()), low=low, high=high, how="Wilson", better="higher")


def curves(shares: Sequence[float], clean: float, attacks: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Points of accuracy against strength, all attacks from the clean accuracy on."""
    return [
        {"strength": s, "accuracy": float(v), "attack": name}
        for name, curve in attacks.items()
        for s, v in zip((0.0, *shares), (clean, *curve), strict=True)
    ]


def beware(subject: Subject, failed: Sequence[str], low: float, high: float) -> tuple[str, ...]:
    """What an accuracy under attack does not say here; ``low`` to ``high`` is the range strengths refer to."""
    words = [f"gate failed: {name}; the accuracy is too good to be believed" for name in failed]
    if subject.site_layer is not None:
        words.append(
            f"inputs are integers: the output of '{subject.site_layer}' was moved: no token does that"
        )
    if subject.bounds is None:
        words.append(
            f"no bounds are known: strengths are shares of the range seen, {low:.3g} to {high:.3g}, "
            "and nothing is clipped"
        )
    return tuple(words)
