"""What a run tells whoever is watching: a protocol, and the silent watcher. Imports no torch."""

from __future__ import annotations

from typing import Protocol

from microtome.finding import Finding


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
