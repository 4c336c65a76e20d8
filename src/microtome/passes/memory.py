"""How many rows fit: slices are chosen from a memory budget and halved when memory runs out all the same."""

from __future__ import annotations

import re

from microtome.errors import UsageError
from microtome.signals.evaluate import Program
from microtome.subject import Subject

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
WORKING_SET = 192 << 20
"""Beyond this many bytes of activations a larger slice is no faster on any machine we measured."""
MOST_ROWS = 256


def parse_bytes(text: str | int) -> int:
    """Read "2GiB", "500 MB" or a number of bytes.

    Raises:
        UsageError: MT128.
    """
    if isinstance(text, int):
        return text
    match = re.fullmatch(r"\s*([0-9.]+)\s*([kmgt]?)i?b?\s*", text.lower())
    if not match:
        raise UsageError("MT128", f"'{text}' is no amount of memory", fix="write it like 2GiB or 500MB")
    return int(float(match[1]) * _UNITS[match[2]])


def kept_bytes(budget: int) -> int:
    """How much of the budget goes to what is kept between slices: changed parameters, batches, graphs."""
    return max(budget // 8, 1 << 20)


def row_bytes(subject: Subject, program: Program) -> float:
    """Bytes one row is expected to take at the program's hungriest moment."""
    whole = subject.bytes_per_row
    if program.differentiates_twice:
        return 6 * whole
    if program.differentiates:
        return 2.2 * whole
    return 3 * subject.largest_bytes_per_row + 0.25 * whole


def rows_per_slice(subject: Subject, program: Program, budget: int) -> int:
    """Rows to evaluate together, a power of two."""
    affordable = 0.5 * budget / row_bytes(subject, program)
    efficient = WORKING_SET / subject.bytes_per_row
    if program.differentiates_twice:
        # The graph of a backward is several times as large as that of a forward, and no faster in large slices.
        efficient = min(efficient, 3 * WORKING_SET / row_bytes(subject, program))
    rows = max(int(min(affordable, max(efficient, 1.0), MOST_ROWS)), 1)
    return 1 << (rows.bit_length() - 1)
