"""What pruning took, how far it may go, and how much of the network was tried."""

from __future__ import annotations

from collections.abc import Container

from torch import Tensor

from microtome.finding import Coverage, Quantity
from microtome.folds.stock import MomentsResult
from microtome.statistics import normal
from microtome.subject import Subject


def rise(before: Tensor, after: Tensor, sign: float) -> Tensor:
    """[m] how much worse each prediction got."""
    return sign * (after.double() - before.double())


def bearable(drops: list[MomentsResult], fractions: tuple[float, ...], allowed: float) -> float:
    """Largest fraction up to which every drop is bearable."""
    reached = 0.0
    for drop, fraction in zip(drops, fractions, strict=True):
        if float(drop.mean) > allowed + 1e-12:
            break
        reached = fraction
    return reached


def taken(drop: MomentsResult) -> float:
    """Mean of what was taken; nothing is 0, and not what rounding leaves of a mean of changes up and down."""
    return round(float(drop.mean), 12)


def mean_drop(drop: MomentsResult, unit: str) -> Quantity:
    """Mean of what pruning took, over the same rows before and after."""
    low, high = normal(taken(drop), float(drop.standard_error))
    return Quantity(value=taken(drop), unit=unit, low=low, high=high, how="normal, paired", better="lower")


def covered(
    subject: Subject, weights: Container[str], tried: Container[str], examples: int
) -> Coverage | None:
    """Layers with weights, and those of them that were pruned alone."""
    layers = [layer for layer in subject.layers if any(n in weights for n in layer.parameters)]
    seen = [layer for layer in layers if any(n in tried for n in layer.parameters)]
    if not layers:
        return None
    rows = min(examples, subject.examples)
    return Coverage(rows=rows, rows_total=subject.examples, layers=len(seen), layers_total=len(layers))
