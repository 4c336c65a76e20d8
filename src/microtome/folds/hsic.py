"""Unbiased HSIC between many layers at once, from blocks of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from microtome.errors import Refusal
from microtome.folds.base import Fold, State
from microtome.signals.gram import BlockGrams, u_centred


class HSICResult(NamedTuple):
    """Sums over blocks, in groups for a jackknife."""

    hsic: Tensor
    """[groups, L, L] float64: sum over a group's blocks of weight x HSIC."""
    weight: Tensor
    """[groups]; a block of r rows weighs r - 3, its degrees of freedom."""
    dropped: int
    """Rows of blocks too short to say anything (fewer than 4 rows)."""


@dataclass(frozen=True, kw_only=True)
class UnbiasedHSIC(Fold):
    """HSIC_1 (Song et al. 2012) between all pairs of its signals, averaged over fixed blocks of rows.

    Signals: :func:`~microtome.signals.gram.block_grams` of each layer, all with this ``block``. The state is
    [groups, L, L] sums, and the raw rows of blocks that are not yet whole.
    """

    block: int
    groups: int = 16

    def lift(self, *values: Tensor) -> State | None:
        """One slice."""
        parts: Sequence[BlockGrams] = values  # type: ignore[assignment]
        if len(parts[0].blocks) + len(parts[0].ids) == 0:
            return None
        size = len(parts)
        state: State = {
            "hsic": torch.zeros(self.groups, size, size, dtype=torch.float64),
            "weight": torch.zeros(self.groups, dtype=torch.float64),
        }
        self._add(state, parts[0].blocks, [p.centred for p in parts])
        state["ids"] = parts[0].ids
        return state | {f"rest{i:04d}": p.rest for i, p in enumerate(parts)}

    def merge(self, a: State, b: State) -> State:
        """Add, and finish the blocks that have become whole."""
        state = {"hsic": a["hsic"] + b["hsic"], "weight": a["weight"] + b["weight"]}
        names = sorted(k for k in a if k.startswith("rest"))
        if not len(a["ids"]) or not len(b["ids"]):
            kept = a if len(a["ids"]) else b
            return state | {k: kept[k] for k in ("ids", *names)}
        if any(a[k].shape[1] != b[k].shape[1] for k in names):
            raise Refusal("examples of different length cannot be compared within one block")
        ids = torch.cat([a["ids"], b["ids"]])
        rest = [torch.cat([a[k], b[k]]) for k in names]
        found, counts = torch.div(ids, self.block, rounding_mode="floor").unique(return_counts=True)
        ids, rest = self._finish(state, ids, rest, found[counts == self.block])
        return state | {"ids": ids, **dict(zip(names, rest, strict=True))}

    def result(self, state: State) -> HSICResult:
        """Blocks at the ends of the data are finished with what they have."""
        done = {"hsic": state["hsic"].clone(), "weight": state["weight"].clone()}
        rest = [state[k] for k in sorted(state) if k.startswith("rest")]
        found, counts = torch.div(state["ids"], self.block, rounding_mode="floor").unique(return_counts=True)
        ids, _ = self._finish(done, state["ids"], rest, found[counts >= 4])
        return HSICResult(done["hsic"], done["weight"], len(ids))

    def _finish(
        self, state: State, ids: Tensor, rest: list[Tensor], blocks: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Reduce these blocks; returns the rows that are left."""
        number = torch.div(ids, self.block, rounding_mode="floor")
        for block in blocks.tolist():
            inside = (number == block).nonzero()[:, 0]
            inside = inside[ids[inside].argsort()]
            self._add(state, torch.tensor([block]), [u_centred(r[inside.to(r.device)][None]) for r in rest])
        left = (~torch.isin(number, blocks)).nonzero()[:, 0]
        return ids[left], [r[left.to(r.device)] for r in rest]

    def _add(self, state: State, blocks: Tensor, centred: list[Tensor]) -> None:
        if not len(blocks):
            return
        n = centred[0].shape[1]
        stacked = torch.stack([c.flatten(1) for c in centred], dim=1)  # [b, L, n * n]
        pairs = (stacked @ stacked.mT).cpu() / n  # HSIC is this over n - 3, its weight n - 3
        state["hsic"].index_add_(0, blocks % self.groups, pairs)
        state["weight"].index_add_(
            0, blocks % self.groups, torch.full((len(blocks),), n - 3.0, dtype=torch.float64)
        )
