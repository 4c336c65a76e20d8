"""Statistics of units over examples and positions, in few passes over activations that may be large."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from microtome.folds.base import Fold, State
from microtome.signals.noise import wide


@dataclass(frozen=True)
class UnitResult:
    """Of each of ``d`` units, over examples and positions; float64."""

    count: int
    mean: Tensor
    variance: Tensor
    """Divided by count."""
    minimum: Tensor
    maximum: Tensor
    zeros: Tensor
    """Share of values that are exactly 0 (at most ``threshold`` away from it)."""
    edges: Tensor
    """Share of values within ``margin`` of either bound; 0 without bounds."""
    most: tuple[Tensor, Tensor] | None = None
    """Of the first units, the examples whose largest value is greatest: ids and values, each [units, k], best first."""
    least: tuple[Tensor, Tensor] | None = None
    """And those whose largest value is least."""

    def exciting(self, layer: str) -> dict[str, np.ndarray]:
        """Both, as the arrays of a finding: "most exciting/layer" and "most excitement/layer", and so on."""
        found = {"most": self.most, "least": self.least}
        ids = {
            f"{word} exciting/{layer}": kept[0].numpy() for word, kept in found.items() if kept is not None
        }
        values = {
            f"{word} excitement/{layer}": kept[1].numpy() for word, kept in found.items() if kept is not None
        }
        return ids | values


@dataclass(frozen=True, kw_only=True)
class UnitStatistics(Fold):
    """Mean, variance, extremes, zeros and saturation of each unit of [n, ...] activations.

    Units run along ``dimension`` (of the batched tensor). Reductions touch the activation about six times,
    each at the speed of memory: sum, norm, both extremes, sign and its sum. A variance that is lost in the
    rounding of a large mean is taken again in float64 for the units concerned.

    With the ids of the rows as second signal, and ``keep`` above 0: of each of the first ``widest`` units also the
    ``keep`` examples with the greatest and with the least value, its largest over the positions, rounded to 14 bits so
    that the last digits, which differ with the cut of the data, decide nothing; ties go to the smaller id.
    """

    dimension: int = -1
    bounds: tuple[float, float] | None = None
    margin: float = 0.0
    threshold: float = 0.0
    keep: int = 0
    widest: int = 256

    def lift(self, *values: Tensor) -> State | None:
        """One slice."""
        x = values[0]
        if x.shape[0] == 0:
            return None
        x = wide(x) if x.dim() == 2 else x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        last = self.dimension in (-1, x.dim() - 1)
        # Groups of values of one unit: [1, size, d] where units come last, else [n, d, size].
        x = x.reshape(1, -1, x.shape[-1]) if last else x.movedim(self.dimension, 1).flatten(2)
        along = 1 if last else 2
        size = x.shape[along]
        total, norm = wide(x.sum(along)), wide(torch.linalg.vector_norm(x, 2, along))
        low, high = x.amin(along), x.amax(along)
        found = self._kept(values, high, last)
        mean = total.sum(0) / (size * x.shape[0])
        low, high = wide(low).amin(0), wide(high).amax(0)
        means = total / size
        m2 = (norm.square() - size * means.square()).sum(0).clamp_min(0) + size * (means - mean).square().sum(
            0
        )
        poor = m2 < 1e-4 * size * x.shape[0] * mean.square()
        m2[low == high] = 0.0
        poor &= low != high
        if bool(poor.any()):
            chosen = wide(x[..., poor] if last else x[:, poor])
            mean[poor] = chosen.mean((0, along))
            centred = chosen - (mean[poor] if last else mean[poor][:, None])
            m2[poor] = centred.square().sum((0, along))
        if self.threshold:
            zeros = (x.abs() <= self.threshold).sum((0, along))
        else:
            sign = x.sign() if bool(low.min() >= 0) else x.sign().abs_()
            zeros = size * x.shape[0] - wide(sign.sum(along)).sum(0)
        edges = torch.zeros_like(mean)
        if self.bounds is not None:
            bottom, top = self.bounds
            edges = wide(((x <= bottom + self.margin) | (x >= top - self.margin)).sum((0, along)))
        count = torch.tensor(float(size * x.shape[0]), dtype=torch.float64)
        return {
            "n": count,
            "mean": mean,
            "m2": m2,
            "low": low,
            "high": high,
            "zeros": wide(zeros),
            "edges": edges,
            **found,
        }

    def merge(self, a: State, b: State) -> State:
        """Chan's merge of the moments; the counts add."""
        n = a["n"] + b["n"]
        delta = b["mean"] - a["mean"]
        share = float(b["n"] / n)
        return {
            "n": n,
            "mean": a["mean"] + delta * share,
            "m2": a["m2"] + b["m2"] + delta.square() * (float(a["n"]) * share),
            "low": torch.minimum(a["low"], b["low"]),
            "high": torch.maximum(a["high"], b["high"]),
            "zeros": a["zeros"] + b["zeros"],
            "edges": a["edges"] + b["edges"],
            **(self._best({k: torch.cat([a[k], b[k]]) for k in _KEPT}) if "most" in a else {}),
        }

    def _kept(self, values: tuple[Tensor, ...], high: Tensor, last: bool) -> State:
        if not self.keep or len(values) < 2:
            return {}
        x, width = values[0], min(self.widest, high.shape[-1])
        # Where units come last, the extremes are those of all examples together.
        peaks = x[..., :width].reshape(x.shape[0], -1, width).amax(1) if last else high[:, :width]
        peaks = _rounded(peaks.float())
        ids = values[1].to(peaks.device)[:, None].expand_as(peaks)
        return self._best({"most": peaks, "most_ids": ids, "least": peaks, "least_ids": ids})

    def _best(self, state: State) -> State:
        """[k, units] of each, the best first."""
        made: State = {}
        for name in ("most", "least"):
            by_id = state[f"{name}_ids"].argsort(stable=True, dim=0)
            keys = state[name].gather(0, by_id)
            order = by_id.gather(0, keys.argsort(stable=True, dim=0, descending=name == "most")[: self.keep])
            made |= {name: state[name].gather(0, order), f"{name}_ids": state[f"{name}_ids"].gather(0, order)}
        return made

    def result(self, state: State) -> UnitResult:
        """On the CPU."""
        n = int(state["n"])
        constant = state["low"] == state["high"]
        variance = torch.where(constant, 0.0, state["m2"].clamp_min(0) / n)
        rest = (state["mean"], variance, state["low"], state["high"], state["zeros"] / n, state["edges"] / n)
        mean, spread, low, high, zeros, edges = (t.cpu() for t in rest)

        def kept(name: str) -> tuple[Tensor, Tensor] | None:
            if name not in state:
                return None
            return state[f"{name}_ids"].cpu().T.contiguous(), state[name].cpu().T.contiguous()

        return UnitResult(n, mean, spread, low, high, zeros, edges, kept("most"), kept("least"))


_KEPT = ("most", "most_ids", "least", "least_ids")


def _rounded(x: Tensor) -> Tensor:
    """To 14 bits of the mantissa."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 16384).round() / 16384, exponent)
