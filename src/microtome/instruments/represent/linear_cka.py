"""Linear CKA between all layers, of one network or of two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from microtome.errors import Refusal
from microtome.figures import heatmap
from microtome.finding import Finding, Quantity, Table
from microtome.folds.hsic import UnbiasedHSIC
from microtome.instrument import Asking, HasLayers, Instrument, OwnRows
from microtome.signals.gram import block_grams
from microtome.statistics import normal
from microtome.subject import Subject

HELD_BYTES = 128 << 20


@dataclass(frozen=True, kw_only=True)
class LinearCKA(Instrument):
    """Which layers see the data alike?

    CKA(a, b) = HSIC(a, b) / sqrt(HSIC(a, a) HSIC(b, b)), with HSIC_1 of the linear kernels of whole
    activations (positions and units), averaged over small blocks of rows before the ratio (Nguyen, Raghu &
    Kornblith 2021). HSIC_1 is unbiased for any block of 4 rows or more, so small blocks cost only
    second-order variance; here they are fixed by example id, so batches, shards and memory do not change
    the value, blocks merge exactly in any order, and a layer costs 2 x block x elements operations a row.
    U-centred Gram matrices [b, L, block^2] give all pairs in one product. A layer that does not vary has
    HSIC 0: its CKA is left empty. The ratio can leave 0..1 by noise. Invariant to rotation and common scale
    of units, not to any linear map; a few dominant directions or outliers can decide it (Davari et al.
    2023). ``other`` compares with a second network.
    """

    needs = HasLayers & OwnRows
    how_to_read = (
        "1: the two layers arrange the examples in the same way up to rotation and scale; 0: unrelated. "
        "Bright blocks along the diagonal are stages; neighbours near 1 hint at layers that could go. High "
        "CKA does not mean equal behaviour."
    )

    other: Subject | None = None
    block: int = 0
    every_layer: bool = False

    def options(self) -> dict[str, Any]:
        return {
            "other": None if self.other is None else self.other.name,
            "block": self.block,
            "every_layer": self.every_layer,
        }

    def examine(self, subject: Subject) -> Asking:
        if subject.examples < 4:
            raise Refusal("unbiased HSIC needs at least 4 examples")
        subjects = (subject,) if self.other is None else (subject, self.other)
        layers = [(x, s) for s in subjects for x in (s.layers if self.every_layer else s.representations)]
        block = self.block or _block(sum(x.elements for x, _ in layers))
        if block < 4:
            raise Refusal("a block needs at least 4 rows")
        signals = [block_grams(x.name, block) for x, _ in layers]
        signals = [g if s is subject else g.of(s) for g, (_, s) in zip(signals, layers, strict=True)]
        sums, weight, dropped = yield UnbiasedHSIC(signals=tuple(signals), block=block)
        used = weight > 0
        if not bool(used.any()):
            raise Refusal("no block of 4 rows or more")
        sums = sums[used]
        rows = len(subject.representations) if not self.every_layer else len(subject.layers)
        names = [x.name for x, _ in layers]
        down = range(rows)
        across = down if self.other is None else range(rows, len(layers))
        pairs = [(i, i + 1) for i in down[:-1]] if self.other is None else _same(names, down, across)
        headline = "neighbouring layers" if self.other is None else "same layers"
        cka = _cka(sums.sum(0))
        quantities = {}
        for title, chosen in ((headline, pairs), ("first and last layer", [(down[0], across[-1])])):
            estimate = _mean(cka, chosen)
            if estimate is not None:
                left = [_mean(_cka(sums.sum(0) - part), chosen) for part in sums] if len(sums) > 3 else []
                quantities[title] = _quantity(estimate, [v for v in left if v is not None])
        if headline not in quantities:
            raise Refusal("no two layers to compare vary over the data")
        table = torch.stack([cka[i, list(across)] for i in down])
        alike = sorted(
            ((float(cka[i, j]), names[i], names[j]) for i, j in pairs if bool(cka[i, j].isfinite())),
            reverse=True,
        )
        still = [
            names[i]
            for i in (*down, *([] if self.other is None else across))
            if not bool(cka[i, i].isfinite())
        ]
        caveats = [f"does not vary over the data, so left empty: {', '.join(still)}"] if still else []
        caveats += [f"{dropped} rows are left over: too few for a block"] if dropped else []
        what = (
            "neighbouring layers"
            if self.other is None
            else f"layers of the same place in {subject.name} and {self.other.name}"
        )
        return Finding(
            headline=headline,
            summary=f"CKA of {what} is {quantities[headline].value:.2f} on average; blocks of {block} rows.",
            quantities=quantities,
            tables={
                "pairs": Table(
                    columns=("CKA", "layer", "with"), rows=tuple(alike), caption="Most alike first"
                )
            },
            figures={
                "cka": heatmap(
                    "Linear CKA between layers",
                    table.numpy(),
                    row_names=[names[i] for i in down],
                    column_names=[names[j] for j in across],
                    row_title=subject.name,
                    column_title=subjects[-1].name,
                    value_title="CKA",
                    limits=(0, 1),
                )
            },
            arrays={"cka": table.nan_to_num(0.0).numpy(), "hsic": (sums.sum(0) / weight.sum()).numpy()},
            caveats=tuple(caveats),
        )


def _block(elements: int) -> int:
    """Rows whose float32 activations take at most 128 MiB, a power of two from 8 to 64."""
    fits = HELD_BYTES // (4 * elements)
    return 1 << (min(max(fits, 8), 64).bit_length() - 1)


def _cka(hsic: Tensor) -> Tensor:
    """[L, L], NaN where a layer has no variance to compare."""
    own = hsic.diagonal()
    scale = torch.where(own > 0, own, torch.full_like(own, torch.nan)).sqrt()
    return hsic / (scale[:, None] * scale[None, :])


def _same(names: list[str], down: range, across: range) -> list[tuple[int, int]]:
    """Layers of one name, else of one place from the end."""
    place = {names[j]: j for j in across}
    found = [(i, place[names[i]]) for i in down if names[i] in place]
    return found or list(zip(reversed(down), reversed(across), strict=False))


def _mean(cka: Tensor, pairs: list[tuple[int, int]]) -> float | None:
    values = torch.stack([cka[i, j] for i, j in pairs]) if pairs else torch.zeros(0)
    values = values[values.isfinite()]
    return float(values.mean()) if len(values) else None


def _quantity(value: float, left: list[float]) -> Quantity:
    """With a jackknife over groups of blocks."""
    if len(left) < 4:
        return Quantity(value=value)
    each = torch.tensor(left, dtype=torch.float64)
    error = float(((len(each) - 1) / len(each) * (each - each.mean()).square().sum()).sqrt())
    low, high = normal(value, error)
    return Quantity(value=value, low=low, high=high, how="jackknife over blocks of rows")
