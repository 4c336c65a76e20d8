"""What a run tells whoever is watching: a protocol, the silent watcher, and one that writes it down.

Imports no torch.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Protocol

import msgspec

from microtome.finding import Finding

PROGRESS_FILE = "progress.json"
WRITE_SECONDS = 0.5


class Watcher(Protocol):
    """Receives the events of a run, in order; must not raise."""

    def round_started(self, index: int, rows: int, instruments: tuple[str, ...]) -> None:
        """Round ``index`` (from 1) begins and will read ``rows`` row-evaluations for these instruments."""

    def advanced(self, rows: int) -> None:
        """``rows`` more row-evaluations are done."""

    def round_finished(self, index: int, seconds: float) -> None:
        """The round is over."""

    def found(self, finding: Finding) -> None:
        """One instrument has answered."""

    def note(self, text: str) -> None:
        """Something worth a line: an inference made, a micro-batch halved, a state saved."""


class Silent:
    """Watches nothing."""

    def round_started(self, index: int, rows: int, instruments: tuple[str, ...]) -> None:
        """Ignore."""

    def advanced(self, rows: int) -> None:
        """Ignore."""

    def round_finished(self, index: int, seconds: float) -> None:
        """Ignore."""

    def found(self, finding: Finding) -> None:
        """Ignore."""

    def note(self, text: str) -> None:
        """Ignore."""


class Progress(msgspec.Struct, kw_only=True):
    """How far a running examination is."""

    instruments: int
    """How many were chosen."""
    found: int = 0
    """How many have answered."""
    round: int = 0
    rows: int = 0
    """Row-evaluations of this round."""
    done: int = 0
    asking: tuple[str, ...] = ()
    """Who waits for this round."""
    at: float = 0.0
    """When this was written: seconds since 1970."""
    process: int = 0


class Written:
    """Passes everything on to another watcher, and writes how far it is into the run's folder twice a second."""

    def __init__(self, inner: Watcher, folder: Path, instruments: int) -> None:
        self.inner, self.folder = inner, folder
        self.progress = Progress(instruments=instruments, process=os.getpid())
        self._write()

    def round_started(self, index: int, rows: int, instruments: tuple[str, ...]) -> None:
        """A new round: nothing of it is done."""
        p = self.progress
        p.round, p.rows, p.done, p.asking = index, rows, 0, tuple(instruments)
        self._write()
        self.inner.round_started(index, rows, instruments)

    def advanced(self, rows: int) -> None:
        """Count."""
        self.progress.done += rows
        if time.time() - self.progress.at >= WRITE_SECONDS:
            self._write()
        self.inner.advanced(rows)

    def round_finished(self, index: int, seconds: float) -> None:
        """Pass on."""
        self.inner.round_finished(index, seconds)

    def found(self, finding: Finding) -> None:
        """Count."""
        self.progress.found += 1
        self._write()
        self.inner.found(finding)

    def note(self, text: str) -> None:
        """Pass on."""
        self.inner.note(text)

    def _write(self) -> None:
        self.progress.at = time.time()
        made = self.folder / f".{PROGRESS_FILE}.{os.getpid()}"
        # Nobody's examination ends because its progress could not be written; a finished run has no folder.
        with contextlib.suppress(OSError):
            made.write_bytes(msgspec.json.encode(self.progress))
            os.replace(made, self.folder / PROGRESS_FILE)


def read_progress(folder: Path) -> Progress | None:
    """What :class:`Written` wrote last; None where there is nothing to read."""
    try:
        return msgspec.json.decode((folder / PROGRESS_FILE).read_bytes(), type=Progress)
    except (OSError, msgspec.MsgspecError):
        return None
