"""Folds: mergeable accumulations of signals over slices.

A fold is a commutative monoid with a projection: ``lift`` turns one slice's values into a state, ``merge``
joins two states, ``result`` reads the answer. The empty state is ``None`` and merges as nothing, so an empty
shard, a shard of one row and the whole data set obey the same law. States are dicts of tensors and numbers
in float64 or int64, which is all that is needed to save a run and go on after a crash.

Folds are frozen dataclasses: equal folds are computed once, whoever asks.
"""

from __future__ import annotations

from microtome.folds.base import All, Fold, Rows, Sample, Selection
from microtome.folds.stock import (
    Collect,
    Confusion,
    Covariance,
    CrossCovariance,
    GroupedMoments,
    Histogram,
    Moments,
    Quantiles,
    Reservoir,
    Sum,
    TopK,
)
from microtome.signals.noise import row_uniform

__all__ = [
    "All",
    "Collect",
    "Confusion",
    "Covariance",
    "CrossCovariance",
    "Fold",
    "GroupedMoments",
    "Histogram",
    "Moments",
    "Quantiles",
    "Reservoir",
    "Rows",
    "Sample",
    "Selection",
    "Sum",
    "TopK",
    "row_uniform",
]
