"""The stock folds. All accumulate in float64 with merges that do not cancel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from microtome.errors import Refusal
from microtome.folds.base import DIFFERENT_LENGTH, Fold, State
from microtome.signals.noise import row_uniform, wide

PIECE = 1 << 20
"""Numbers to add at a time."""


class MomentsResult(NamedTuple):
    """Elementwise moments over rows."""

    count: int  # type: ignore[assignment]
    mean: Tensor
    """[...] float64."""
    variance: Tensor
    """[...] float64, divided by count - 1 (0 for a single row)."""
    minimum: Tensor
    maximum: Tensor

    @property
    def standard_error(self) -> Tensor:
        """Of the mean, for independent rows."""
        return (self.variance / max(self.count, 1)).sqrt()


@dataclass(frozen=True, kw_only=True)
class Moments(Fold):
    """Count, mean, variance, minimum and maximum of [n, ...] rows, elementwise (Chan's merge)."""

    def lift(self, *values: Tensor) -> State | None:
        """One slice: [n, ...]."""
        value = values[0]
        n = value.shape[0]
        if n == 0:
            return None
        if value.dtype not in (torch.float32, torch.float64):
            value = value.double()
        variance, mean = torch.var_mean(value, 0, correction=0)
        low, high = torch.aminmax(value, dim=0)
        count = torch.tensor(float(n), dtype=torch.float64)
        return {
            "n": count, "mean": wide(mean), "m2": wide(variance) * n, "low": wide(low), "high": wide(high),
        }  # fmt: skip

    def merge(self, a: State, b: State) -> State:
        """Chan, Golub & LeVeque 1979."""
        if a["mean"].shape != b["mean"].shape:  # which may broadcast
            raise Refusal(DIFFERENT_LENGTH)
        n = a["n"] + b["n"]
        delta = b["mean"] - a["mean"]
        share = float(b["n"] / n)
        return {
            "n": n,
            "mean": a["mean"] + delta * share,
            "m2": a["m2"] + b["m2"] + delta.square() * (float(a["n"]) * share),
            "low": torch.minimum(a["low"], b["low"]),
            "high": torch.maximum(a["high"], b["high"]),
        }

    def result(self, state: State) -> MomentsResult:
        """As named tuple."""
        n = int(state["n"])
        variance = state["m2"].clamp_min(0) / max(n - 1, 1)
        return MomentsResult(n, state["mean"], variance, state["low"], state["high"])


@dataclass(frozen=True, kw_only=True)
class Sum(Fold):
    """Sum of values that are already sums over the slice (parameter gradients, Hessian-vector products)."""

    additive = True

    def lift(self, *values: Tensor) -> State | None:
        """One slice's sum, as it is: it is widened when a second one is added."""
        return {"sum": values[0]}

    def merge(self, a: State, b: State) -> State:
        """Add."""
        if a["sum"].shape != b["sum"].shape:
            raise Refusal(DIFFERENT_LENGTH)
        # A sum of one slice may be a value that others read: only what was widened is written to.
        total = a["sum"] if a["sum"].dtype == torch.float64 else a["sum"].double()
        total = total.contiguous()
        # Piece by piece, for torch would widen all of the other to a copy before adding it.
        for mine, other in zip(total.view(-1).split(PIECE), b["sum"].reshape(-1).split(PIECE), strict=True):
            mine.add_(other)
        return {"sum": total}

    def result(self, state: State) -> Tensor:
        """float64, the shape of the signal."""
        return state["sum"].double()


class CovarianceResult(NamedTuple):
    """First and second moments of vectors."""

    count: int  # type: ignore[assignment]
    mean: Tensor
    """[d] float64."""
    covariance: Tensor
    """[d, d] float64, divided by count - 1."""


@dataclass(frozen=True, kw_only=True)
class Covariance(Fold):
    """Mean and covariance of [n, d] rows."""

    def lift(self, *values: Tensor) -> State | None:
        """One slice: [n, d]."""
        value = values[0]
        if value.shape[0] == 0:
            return None
        value = wide(value)
        mean = value.mean(0)
        centred = value - mean
        return {
            "n": torch.tensor(float(len(value)), dtype=torch.float64),
            "mean": mean,
            "m2": centred.T @ centred,
        }

    def merge(self, a: State, b: State) -> State:
        """Chan's merge for cross products."""
        n = a["n"] + b["n"]
        delta = b["mean"] - a["mean"]
        m2 = a["m2"].add_(b["m2"])
        m2.addr_(delta, delta, alpha=float(a["n"] * b["n"] / n))
        return {"n": n, "mean": a["mean"] + delta * float(b["n"] / n), "m2": m2}

    def result(self, state: State) -> CovarianceResult:
        """As named tuple."""
        n = int(state["n"])
        return CovarianceResult(n, state["mean"], state["m2"] / max(n - 1, 1))


@dataclass(frozen=True, kw_only=True)
class CrossCovariance(Fold):
    """Cross-covariance of two row-aligned signals, [n, d] and [n, e]."""

    def lift(self, *values: Tensor) -> State | None:
        """One slice."""
        x, y = wide(values[0]), wide(values[1])
        if len(x) == 0:
            return None
        mx, my = x.mean(0), y.mean(0)
        count = torch.tensor(float(len(x)), dtype=torch.float64)
        return {"n": count, "x": mx, "y": my, "m2": (x - mx).T @ (y - my)}

    def merge(self, a: State, b: State) -> State:
        """Chan's merge for cross products."""
        n = a["n"] + b["n"]
        dx, dy = b["x"] - a["x"], b["y"] - a["y"]
        share = float(b["n"] / n)
        m2 = a["m2"].add_(b["m2"]).addr_(dx, dy, alpha=float(a["n"]) * share)
        return {"n": n, "x": a["x"] + dx * share, "y": a["y"] + dy * share, "m2": m2}

    def result(self, state: State) -> tuple[int, Tensor, Tensor, Tensor]:
        """(count, mean x [d], mean y [e], covariance [d, e])."""
        n = int(state["n"])
        return n, state["x"], state["y"], state["m2"] / max(n - 1, 1)


class GroupedResult(NamedTuple):
    """Moments of each group; groups without rows have count 0 and zeros."""

    count: Tensor  # type: ignore[assignment]
    """[k] int64."""
    mean: Tensor
    """[k, d] float64."""
    within: Tensor
    """[d, d] pooled scatter around the group means, or [k] summed squared distances; see the fold."""


@dataclass(frozen=True, kw_only=True)
class GroupedMoments(Fold):
    """Mean of each of ``groups`` groups of [n, d] rows, and the scatter within them.

    Signals: (values [n, d], group [n] int). With ``full`` the within-group scatter is kept as one pooled
    [d, d] matrix, else as the summed squared distance to the mean of each group, [k].
    """

    groups: int
    full: bool = True

    def lift(self, *values: Tensor) -> State | None:
        """One slice."""
        x, group = wide(values[0]), values[1].long()
        if len(x) == 0:
            return None
        x = x.reshape(len(x), -1)
        count = torch.bincount(group, minlength=self.groups).to(x.dtype)
        total = torch.zeros(self.groups, x.shape[1], dtype=x.dtype, device=x.device).index_add_(0, group, x)
        mean = total / count.clamp_min(1)[:, None]
        centred = x - mean[group]
        if self.full:
            within = centred.T @ centred
        else:
            within = torch.zeros(self.groups, dtype=x.dtype, device=x.device).index_add_(
                0, group, centred.square().sum(1)
            )
        return {"n": count, "mean": mean, "within": within}

    def merge(self, a: State, b: State) -> State:
        """Chan's merge, group by group."""
        n = a["n"] + b["n"]
        delta = b["mean"] - a["mean"]
        safe = n.clamp_min(1)
        weight = a["n"] * b["n"] / safe
        within = a["within"].add_(b["within"])
        if self.full:
            within.add_((delta * weight[:, None]).T @ delta)
        else:
            within.add_(delta.square().sum(1) * weight)
        return {"n": n, "mean": a["mean"] + delta * (b["n"] / safe)[:, None], "within": within}

    def result(self, state: State) -> GroupedResult:
        """As named tuple."""
        return GroupedResult(state["n"].long(), state["mean"], state["within"])


@dataclass(frozen=True, kw_only=True)
class Histogram(Fold):
    """Counts of all values in ``bins`` equal bins over [low, high]; the ends take what lies outside.

    With a second signal of the same shape, also the sum of that signal in each bin.
    """

    bins: int
    low: float
    high: float

    def lift(self, *values: Tensor) -> State | None:
        """One slice: [n, ...] and optionally weights of the same shape."""
        value = values[0].reshape(-1)
        if value.numel() == 0:
            return None
        position = ((value - self.low) / (self.high - self.low) * self.bins).long().clamp(0, self.bins - 1)
        state = {"counts": torch.bincount(position, minlength=self.bins)}
        for i, other in enumerate(values[1:]):
            state[f"sum{i}"] = torch.zeros(self.bins, dtype=torch.float64, device=value.device).index_add_(
                0, position, wide(other.reshape(-1))
            )
        return state

    def merge(self, a: State, b: State) -> State:
        """Add."""
        return {k: a[k] + b[k] for k in a}

    def result(self, state: State) -> tuple[Tensor, ...]:
        """(edges [bins + 1], counts [bins], sums [bins] for each further signal)."""
        edges = torch.linspace(self.low, self.high, self.bins + 1, dtype=torch.float64)
        return (edges, state["counts"].cpu(), *(state[k].cpu() for k in sorted(state) if k != "counts"))


@dataclass(frozen=True, kw_only=True)
class Confusion(Fold):
    """[k, k] counts: rows are true classes, columns predicted ones. Signals: predictions and labels, [m]."""

    classes: int

    def lift(self, *values: Tensor) -> State | None:
        """One slice."""
        predicted, true = values[0].long(), values[1].long()
        if predicted.numel() == 0:
            return None
        flat = torch.bincount(true * self.classes + predicted, minlength=self.classes**2)
        return {"counts": flat.reshape(self.classes, self.classes)}

    def merge(self, a: State, b: State) -> State:
        """Add."""
        return {"counts": a["counts"] + b["counts"]}

    def result(self, state: State) -> Tensor:
        """[k, k] int64."""
        return state["counts"].cpu()


def _in_order(state: State) -> list[str]:
    """Keys of the signals as they were asked for: v100 comes after v99."""
    return sorted(state, key=lambda key: (len(key), key))


@dataclass(frozen=True, kw_only=True)
class Collect(Fold):
    """Every row of its signals, in the order of the ids given by the first signal.

    The first signal is [n] int64 (``rows`` or ``prediction_ids``). Grows with the data: meant for a few
    numbers an example. Refuses beyond ``limit`` bytes, so that memory stays bounded.
    """

    limit: int = 1 << 28

    def lift(self, *values: Tensor) -> State | None:
        """One slice."""
        if values[0].shape[0] == 0:
            return None
        lengths = {v.shape[0] for v in values if v.dim()}
        if len(lengths) > 1:
            raise Refusal(
                f"some signals have one value an example, others not: {sorted(lengths)} rows in a slice"
            )
        return {f"v{i:02d}": v.detach().cpu() for i, v in enumerate(values)}

    def merge(self, a: State, b: State) -> State:
        """Concatenate."""
        joined = {k: torch.cat([a[k], b[k]]) for k in a}
        size = sum(v.numel() * v.element_size() for v in joined.values())
        if size > self.limit:
            raise Refusal(
                f"keeping every row takes more than {self.limit >> 20} MiB; use a sample of the rows"
            )
        return joined

    def result(self, state: State) -> tuple[Tensor, ...]:
        """(ids sorted [n], then each further signal [n, ...] in that order)."""
        order = torch.argsort(state["v00"], stable=True)
        return tuple(state[k][order] for k in _in_order(state))


@dataclass(frozen=True, kw_only=True)
class TopK(Fold):
    """The ``count`` rows with the largest value. Signals: (ids [n], values [n], payloads [n, ...] ...).

    Ties go to the smaller id, so the answer does not depend on how the data was cut.
    """

    count: int
    largest: bool = True

    def lift(self, *values: Tensor) -> State | None:
        """One slice."""
        if values[0].shape[0] == 0:
            return None
        return self._best({f"v{i:02d}": v.detach().cpu() for i, v in enumerate(values)})

    def _best(self, state: State) -> State:
        by_id = torch.argsort(state["v00"], stable=True)
        key = state["v01"][by_id]
        order = by_id[torch.argsort(key, stable=True, descending=self.largest)][: self.count]
        return {k: v[order] for k, v in state.items()}

    def merge(self, a: State, b: State) -> State:
        """Best of both."""
        return self._best({k: torch.cat([a[k], b[k]]) for k in a})

    def result(self, state: State) -> tuple[Tensor, ...]:
        """(ids [k], values [k], payloads ...), best first."""
        return tuple(state[k] for k in _in_order(state))


@dataclass(frozen=True, kw_only=True)
class Reservoir(Fold):
    """A uniform sample of at most ``count`` rows, mergeable: those with the smallest hash of (seed, id).

    Signals: (ids [n], values [n, ...] ...).
    """

    count: int
    seed: int = 0

    def lift(self, *values: Tensor) -> State | None:
        """One slice."""
        if values[0].shape[0] == 0:
            return None
        state = {f"v{i:02d}": v.detach().cpu() for i, v in enumerate(values)}
        state["key"] = row_uniform(state["v00"], self.seed)
        return self._smallest(state)

    def _smallest(self, state: State) -> State:
        if len(state["key"]) <= self.count:
            return state
        index = state["key"].topk(self.count, largest=False, sorted=False).indices
        return {k: v[index] for k, v in state.items()}

    def merge(self, a: State, b: State) -> State:
        """Smallest hashes of both."""
        return self._smallest({k: torch.cat([a[k], b[k]]) for k in a})

    def result(self, state: State) -> tuple[Tensor, ...]:
        """(ids sorted [k], then each further signal)."""
        order = torch.argsort(state["v00"], stable=True)
        return tuple(state[k][order] for k in _in_order(state) if k != "key")


@dataclass(frozen=True, kw_only=True)
class Quantiles(Fold):
    """Approximate quantiles of all values: exact counts on a signed logarithmic grid (error ~2 %)."""

    steps: int = 64
    """Bins a decade of magnitude, from 1e-12 to 1e12."""

    @property
    def _half(self) -> int:
        return 24 * self.steps

    def lift(self, *values: Tensor) -> State | None:
        """One slice: any shape."""
        value = values[0].reshape(-1)
        if value.numel() == 0:
            return None
        magnitude = ((wide(value).abs().clamp(1e-12, 1e12).log10() + 12) * self.steps).long()
        magnitude = magnitude.clamp(0, self._half - 1)
        index = torch.where(value > 0, self._half + 1 + magnitude, self._half - 1 - magnitude)
        index = torch.where(value.abs() < 1e-12, torch.full_like(index, self._half), index)
        return {"counts": torch.bincount(index, minlength=2 * self._half + 1)}

    def merge(self, a: State, b: State) -> State:
        """Add."""
        return {"counts": a["counts"] + b["counts"]}

    def result(self, state: State) -> Any:
        """A function from probability to value."""
        counts = state["counts"].cpu().double()
        cumulative = counts.cumsum(0)

        def at(probability: float) -> float:
            rank = torch.tensor(probability, dtype=torch.float64) * cumulative[-1]
            index = int(torch.searchsorted(cumulative, rank.clamp_min(1)).clamp_max(len(counts) - 1))
            if index == self._half:
                return 0.0
            distance = index - self._half - 1 if index > self._half else self._half - 1 - index
            return math.copysign(10 ** ((distance + 0.5) / self.steps - 12), index - self._half)

        return at
