"""Where words go: results on stdout, everything else on stderr; with ``--json``, JSON alone on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any


def say(text: str) -> None:
    """Tell the person at the terminal something that is not the result."""
    print(text, file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Print the result."""
    print(text, flush=True)


def show_json(value: Any) -> None:
    """Print the result as JSON. Never NaN: what could not be measured says so in words."""
    if isinstance(value, bytes):
        text = json.dumps(json.loads(value), indent=2, ensure_ascii=False)
    else:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=str)
    print(text, flush=True)


def align(rows: Iterable[Sequence[str]], *, header: Sequence[str] = ()) -> str:
    """Set rows in columns as wide as their longest cell; the last column runs free."""
    lines = [list(map(str, row)) for row in ([header] if header else []) + list(rows)]
    if not lines:
        return ""
    widths = [max(len(line[i]) for line in lines if i < len(line)) for i in range(max(map(len, lines)))]
    return "\n".join(
        "  ".join(
            cell if i == len(line) - 1 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=False))
        ).rstrip()
        for line in lines
    )


def split_list(values: Sequence[str] | None) -> tuple[str, ...]:
    """``--only a,b --only c`` is a, b, c."""
    return tuple(part.strip() for value in values or () for part in value.split(",") if part.strip())
