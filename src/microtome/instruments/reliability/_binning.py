"""Calibration errors in bins, and what chance alone would show."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from microtome.finding import Quantity
from microtome.folds.stock import MomentsResult
from microtome.statistics import normal, wilson


def class_bins(probabilities: Tensor, bins: int) -> Tensor:
    """[m, k]: the middle of the cell of (class, bin), so that no rounding moves it to another."""
    classes = torch.arange(probabilities.shape[1], device=probabilities.device)
    return classes * bins + (probabilities * bins).long().clamp(0, bins - 1) + 0.5


def one_hot(probabilities: Tensor, labels: Tensor) -> Tensor:
    """[m, k] 1.0 at the label."""
    return torch.zeros_like(probabilities).scatter_(1, labels[:, None], 1.0)


def brier(probabilities: Tensor, labels: Tensor) -> Tensor:
    """[m] squared distance from the label, 0..2."""
    p = probabilities.double()
    return p.square().sum(1) - 2 * p.gather(1, labels[:, None])[:, 0] + 1


def surplus(confidence: Tensor, correct: Tensor) -> Tensor:
    """[m] how much surer than right."""
    return confidence.double() - correct


def ece_of(n: np.ndarray, confidence: np.ndarray, right: np.ndarray) -> Any:
    """From counts and sums in bins along the last axis."""
    return np.abs(right - confidence).sum(-1) / n.sum(-1)


def mass_edges(confidence: np.ndarray, bins: int) -> np.ndarray:
    """Edges of bins that hold equally many."""
    return np.unique(np.quantile(confidence, np.linspace(0, 1, bins + 1)))


def binned(confidence: np.ndarray, right: np.ndarray, edges: np.ndarray) -> float:
    """Calibration error of single answers in bins with these edges."""
    place = np.searchsorted(edges[1:-1], confidence, side="right")
    n, c, r = (np.bincount(place, w) for w in (np.ones_like(right), confidence, right))
    return float(ece_of(n, c, r))


def resampled_ece(
    n: np.ndarray, confidence: np.ndarray, right: np.ndarray, draws: int, seed: int
) -> tuple[float, float, float, np.ndarray]:
    """(ECE, low, high of its interval, [draws] what a perfectly calibrated network would show)."""
    random = np.random.default_rng(seed)
    shape = (draws, len(n))
    perfect, around = (
        ece_of(n, confidence, random.binomial(n.astype(int), (s / np.maximum(n, 1)).clip(0, 1), shape))
        for s in (confidence, right)
    )
    ece = float(ece_of(n, confidence, right))
    # Resampling adds the bias once more, so the lower end is reflected; it is 0 where a perfectly
    # calibrated network could show as much. The upper end is of the mean reading, never below the truth.
    high = ece + float(around.mean() - np.quantile(around, 0.025))
    chance = ece <= float(np.quantile(perfect, 0.975))
    low = 0.0 if chance else max(2 * ece - float(np.quantile(around, 0.975)), 0.0)
    return ece, min(low, ece), high, perfect


def bin_rows(
    edges: list[float], n: np.ndarray, confidence: np.ndarray, right: np.ndarray
) -> tuple[tuple[float, float, int, float, float, float, float], ...]:
    """(from, to, predictions, mean confidence, accuracy, Wilson's low and high) of each bin that holds some."""
    return tuple(
        (edges[b], edges[b + 1], int(n[b]), float(confidence[b] / n[b]), float(right[b] / n[b]),
         *wilson(int(right[b]), int(n[b])))
        for b in np.flatnonzero(n).tolist()
    )  # fmt: skip


def mean_score(of: MomentsResult, unit: str = "1") -> Quantity:
    """Mean of a score that cannot be negative."""
    low, high = normal(float(of.mean), float(of.standard_error))
    return Quantity(
        value=float(of.mean), unit=unit, low=max(low, 0.0), high=high, how="normal", better="lower"
    )
