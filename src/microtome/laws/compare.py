"""Comparing results and findings number by number."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from microtome.finding import Finding


def numbers(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, number, array, text or None) of everything inside, in a fixed order.

    A function (a quantile) is asked for a few values.
    """
    if isinstance(value, Tensor):
        yield (
            path,
            value.detach().cpu().double().numpy() if value.is_floating_point() else value.cpu().numpy(),
        )
    elif isinstance(value, Mapping):
        for key in value:
            yield from numbers(value[key], f"{path}.{key}")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from numbers(getattr(value, field.name), f"{path}.{field.name}")
    elif isinstance(value, (tuple, list)):
        for i, item in enumerate(value):
            yield from numbers(item, f"{path}[{i}]")
    elif callable(value):
        for p in (0.05, 0.5, 0.95):
            yield f"{path}({p})", float(value(p))
    else:
        yield path, value


def finding_numbers(finding: Finding) -> Iterator[tuple[str, Any]]:
    """What a finding says in numbers: quantities, tables, arrays. Figures draw the same numbers."""
    for name, quantity in finding.quantities.items():
        for part in ("value", "low", "high"):
            yield f"quantity '{name}' {part}", getattr(quantity, part)
    for name, table in finding.tables.items():
        for i, row in enumerate(table.rows):
            for column, cell in zip(table.columns, row, strict=True):
                yield f"table '{name}' row {i} {column}", cell
    for name, array in finding.arrays.items():
        yield f"array '{name}'", array


def difference(a: Any, b: Any, rtol: float, atol: float) -> str | None:
    """How two sequences of (path, number) differ, or None when they agree."""
    left, right = list(a), list(b)
    if [p for p, _ in left] != [p for p, _ in right]:
        odd = next((p for p, _ in left if p not in {q for q, _ in right}), None) or next(
            (p for p, _ in right if p not in {q for q, _ in left}), "their order"
        )
        return f"{odd} is in one and not in the other"
    for (path, x), (_, y) in zip(left, right, strict=True):
        if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
            if x.shape != y.shape:
                return f"{path} has shape {list(x.shape)} and {list(y.shape)}"
            if x.dtype.kind in "fc":
                if not np.allclose(x, y, rtol=rtol, atol=atol * max(1.0, _largest(x)), equal_nan=True):
                    return f"{path} differs by {_largest(x - y):.3g} (largest {_largest(x):.3g})"
            elif not np.array_equal(x, y):
                return f"{path} differs in {int((x != y).sum())} of {x.size} entries"
        elif isinstance(x, (int, float)) and isinstance(y, (int, float)) and not isinstance(x, bool):
            if not math.isclose(x, y, rel_tol=rtol, abs_tol=atol):
                return f"{path} is {x!r} and {y!r}"
        elif x != y:
            return f"{path} is {x!r} and {y!r}"
    return None


def _largest(x: np.ndarray) -> float:
    known = np.abs(x[~np.isnan(x)])
    return float(known.max()) if known.size else 0.0
