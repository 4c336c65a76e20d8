"""Rounds: all instruments' pending folds share one pass over the data."""

from __future__ import annotations

from microtome.passes.plan import Plan, make_plan
from microtome.passes.run import Run, run_instruments

__all__ = ["Plan", "Run", "make_plan", "run_instruments"]
