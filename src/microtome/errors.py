"""Errors a user meets: a code, what was wrong, where, and what to do about it, in one sentence.

Exit codes (the command line's contract): 0 fine, 1 a threshold failed, 2 usage, 3 the subject cannot be
examined, 4 some instruments failed, 130 stopped but saved.
"""

from __future__ import annotations

import difflib
import os
import re
import traceback
from collections.abc import Iterable


class MicrotomeError(Exception):
    """One clear sentence: ``CODE what (where); fix``."""

    exit_status = 2

    def __init__(self, code: str, what: str, *, where: str = "", fix: str = "") -> None:
        self.code, self.what, self.where, self.fix = code, what, where, fix
        place = f" ({where})" if where else ""
        super().__init__(f"{code} {what}{place}" + (f"; {fix}" if fix else ""))


class UsageError(MicrotomeError):
    """The request itself cannot be understood: unknown names, bad options, missing files (exit 2)."""


class SubjectError(MicrotomeError):
    """The model or its data cannot be examined as given (exit 3)."""

    exit_status = 3


class StoreError(MicrotomeError):
    """The store cannot be read or written (exit 2)."""


class MissingExtraError(MicrotomeError):
    """An optional dependency is absent; names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            "MT110",
            f"{purpose} needs the package '{package}'",
            fix=f'pip install "microtome[{extra}]"',
        )


class Refusal(Exception):  # noqa: N818 - a value, not a fault: the instrument says why it does not apply
    """Raised inside an instrument that finds it does not apply; becomes a refused Finding, never a NaN."""


def place(error: BaseException) -> str:
    """``nets.py:12``: the innermost line of the user's own code in an exception's traceback; empty without one.

    Lines of microtome and of torch tell a user little, and are taken only where there are no others.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    here = os.path.dirname(os.path.abspath(__file__))
    frames = [
        (frame.filename, frame.lineno or 0)
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((here, "<frozen")) and "importlib" not in frame.filename
    ]
    # A worker process of a DataLoader sends its traceback as text.
    frames += [(file, int(line)) for file, line in re.findall(r'File "([^"]+)", line (\d+)', str(error))]
    torch = f"{os.sep}torch{os.sep}"
    own = [frame for frame in frames if torch not in frame[0]] or frames
    return f"{own[-1][0]}:{own[-1][1]}" if own else ""


def told(error: BaseException) -> str:
    """``KeyError: 'a'``: an exception in one line; that of a DataLoader's worker as it was raised there."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Caught ") and "worker" in lines[0]:
        return lines[-1]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _close(name: str, known: list[str], count: int) -> list[str]:
    """The closest names; what is far from ``name`` beside a name that is close to it is left out."""
    found = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    likeness = [difflib.SequenceMatcher(None, name, other).ratio() for other in found]
    return [other for other, like in zip(found, likeness, strict=True) if like > likeness[0] - 0.25]


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Return ``"did you mean 'a' or 'b'?"`` for the known names closest to ``name``, or an empty string."""
    candidates = list(known)
    matches = _close(name, candidates, count)
    if not matches:
        tail = name.rsplit("/", 1)[-1]
        by_tail = {c.rsplit("/", 1)[-1]: c for c in candidates}
        matches = [by_tail[m] for m in _close(tail, list(by_tail), count)]
    if not matches:
        matches = [c for c in candidates if name and name in c][:count]
    return f"did you mean {' or '.join(repr(m) for m in matches)}?" if matches else ""
