"""What the leaves on relevance share: maps of one interpretation, and what becomes of the sum they must keep."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import numpy as np
from msgspec.structs import replace
from torch import Tensor

from microtome.errors import Refusal
from microtome.finding import Finding, Table, Threshold
from microtome.folds import Collect, Fold, Selection
from microtome.instruments.explain._faithfulness import (
    Explained,
    Extras,
    explain,
    mean_of,
    over_parts,
    parts_dimension,
)
from microtome.signals import Constant, Signal, class_score, derive, rows
from microtome.signals.interpretation import Interpretation
from microtome.signals.relevance import Pulled, part
from microtome.subject import Subject


def _summed(map: Tensor, *, parts: int | None) -> Tensor:
    """[n, ...] -> [n, parts ...]."""
    return over_parts(map, parts)


def _sizes(map: Tensor, *, parts: int | None) -> Tensor:
    """[n, ...] -> [n, parts ...] sum of absolute values."""
    return over_parts(map.abs(), parts)


def map_of(
    interpretation: Interpretation, score: Signal, parts: int | None, *, sizes: bool = False
) -> Signal:
    """The interpretation's map, summed over what a part spans, with its sign or by its size."""
    seen = part(interpretation, score, "map")
    return derive(_sizes if sizes else _summed, seen, parts=parts, name="relevance")


def amounts(interpretation: Interpretation, *keys: str) -> Extras:
    """For ``explain``: what the interpretation adds up to, for each example."""

    def extras(classes: Constant, over: Selection) -> Mapping[str, Fold]:
        score = class_score(classes)
        asked = (rows, *(part(interpretation, score, key) for key in keys))
        return {"balance": Collect(signals=asked, over=over)}

    return extras


def balanced(
    explained: Explained,
    found: Mapping[str, Any],
    *,
    name: str,
    caption: str,
    words: str,
    threshold: Threshold | None = None,
) -> Finding:
    """The finding with the error of the sum; at its head, where a threshold for it is known.

    Args:
        explained: what ``explain`` returned.
        found: columns by name, [n] each; "score" is what "total" should be.
        name: of the error.
        caption: of the table.
        words: put before the summary; {} is the error.
        threshold: for the error.

    Raises:
        Refusal: when there is nothing to share out.
    """
    finding = explained.finding
    columns = {key: np.asarray(value, dtype=np.float64) for key, value in found.items()}
    scale = float(np.abs(columns["score"]).mean())
    if scale == 0:
        raise Refusal("the score in question is 0: there is nothing to share out")
    missing = np.abs(columns["total"] - columns["score"]) / scale
    error = mean_of(missing, better="lower")
    values = (explained.rows.numpy(), *columns.values(), missing)
    table = Table(
        columns=("example", *columns, "error"),
        rows=tuple(zip(*(v.tolist() for v in values), strict=True)),
        caption=caption,
    )
    finding = replace(
        finding,
        summary=f"{words.format(f'{error.value:.2%}')} {finding.summary}",
        quantities={name: error, **finding.quantities},
        tables={name: table, **finding.tables},
    )
    if threshold is None:
        return finding
    arrays = {**finding.arrays, "gains": finding.arrays["samples"], "samples": missing}
    return replace(finding, headline=name, threshold=threshold, arrays=arrays)


def gated(
    subject: Subject, examples: tuple[int, ...], baseline: float, interpretation: Pulled
) -> Generator[Any, Any, Finding]:
    """A gradient through changed ReLUs, by its size, beside the gradient itself."""
    parts = parts_dimension(subject)

    def beside(classes: Constant, over: Selection) -> Mapping[str, Fold]:
        score = class_score(classes)
        maps = (part(which, score, "map") for which in (interpretation, Pulled()))
        return {"maps": Collect(signals=(rows, *maps), over=over)}

    explained = yield from explain(
        subject,
        examples,
        lambda score: map_of(interpretation, score, parts, sizes=True),
        baseline=baseline,
        signed=False,
        extras=beside,
    )
    changed, plain = (value.double().flatten(1) for value in explained.extra["maps"][1:])
    lengths = changed.norm(dim=1) * plain.norm(dim=1)
    if not bool((lengths > 0).any()):
        raise Refusal("nothing comes back through the ReLUs")
    cosine = (changed * plain).sum(1) / lengths.clamp_min(1e-300)
    likeness = {"likeness to the gradient": mean_of(cosine.numpy())}
    return replace(explained.finding, quantities={**explained.finding.quantities, **likeness})
