"""Progress for people: a bar a round on a terminal, plain lines where nobody watches."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING

from microtome.progress import Watcher

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from microtome.finding import Finding

QUIET_SECONDS = 30.0


@contextlib.contextmanager
def for_terminal(stream: IO[str] | None = None) -> Iterator[Watcher]:
    """Give the watcher that fits where stderr goes; leaves the terminal as found."""
    from rich.console import Console

    console = Console(file=stream or sys.stderr)
    if not console.is_terminal or console.is_dumb_terminal:
        yield Lines(stream or sys.stderr)
        return
    bar = Bar(console)
    try:
        yield bar
    finally:
        bar.close()


def finding_line(finding: Finding) -> str:
    """``reliability/calibration  0.031 [0.024, 0.039]  watch``."""
    if finding.status != "measured":
        return f"{finding.instrument}  {finding.status}: {finding.reason}"
    headline = finding.quantities.get(finding.headline)
    number = headline.text() if headline else finding.summary
    grade = f"  {finding.grade}" if finding.grade in ("watch", "alarm") else ""
    return f"{finding.instrument}  {finding.headline} {number}{grade}"


def duration(seconds: float) -> str:
    """``0:38``, ``12:05``, ``1:02:03``."""
    whole = round(seconds)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


class Lines:
    """A line a round, a line a finding, and during long rounds one every 30 seconds."""

    def __init__(self, stream: IO[str], clock: Callable[[], float] = time.monotonic) -> None:
        self.stream, self.clock = stream, clock
        self.index, self.rows, self.done, self.instruments = 0, 0, 0, 0
        self.began = self.told = clock()

    def _say(self, text: str) -> None:
        # A watcher must not raise; a closed pipe is no reason to lose a measurement.
        with contextlib.suppress(OSError, ValueError):
            print(text, file=self.stream, flush=True)

    def round_started(self, index: int, rows: int, instruments: tuple[str, ...]) -> None:
        """Remember; the line comes when there is something to tell."""
        self.index, self.rows, self.done, self.instruments = index, rows, 0, len(instruments)
        self.began = self.told = self.clock()

    def advanced(self, rows: int) -> None:
        """Say how far the round is, if it has been quiet for long."""
        self.done += rows
        now = self.clock()
        if now - self.told < QUIET_SECONDS or not self.rows:
            return
        self.told = now
        share = min(1.0, self.done / self.rows)
        left = (now - self.began) * (1 - share) / share if share else 0.0
        self._say(f"round {self.index}: {share:.0%}, about {duration(left)} left")

    def round_finished(self, index: int, seconds: float) -> None:
        """One line a round."""
        what = f"{self.instruments} instrument{'s' if self.instruments != 1 else ''}, {self.rows} rows"
        self._say(f"round {index}: {what}, {seconds:.1f} s")

    def found(self, finding: Finding) -> None:
        """One line a finding."""
        self._say(f"  {finding_line(finding)}")

    def note(self, text: str) -> None:
        """Pass it on."""
        self._say(text)


class Bar:
    """One bar, begun anew each round, with the time left; findings scroll above it."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(compact=True),
            TextColumn("left   Ctrl-C saves"),
            console=console,
            transient=True,
        )
        self.task: TaskID | None = None

    def close(self) -> None:
        """Take the bar away."""
        self.progress.stop()

    def _print(self, text: str, style: str = "") -> None:
        # markup and highlight off: names of instruments and layers may hold brackets
        self.console.print(text, style=style or None, markup=False, highlight=False, soft_wrap=True)

    def round_started(self, index: int, rows: int, instruments: tuple[str, ...]) -> None:
        """Begin the bar anew."""
        count = f"{len(instruments)} instrument{'s' if len(instruments) != 1 else ''}"
        description = f"round {index}  {count}"
        if self.task is None:
            self.progress.start()
            self.task = self.progress.add_task(description, total=max(rows, 1))
        else:
            self.progress.reset(self.task, description=description, total=max(rows, 1))

    def advanced(self, rows: int) -> None:
        """Move it."""
        if self.task is not None:
            self.progress.advance(self.task, rows)

    def round_finished(self, index: int, seconds: float) -> None:
        """Leave no line: the findings tell what the round was good for."""

    def found(self, finding: Finding) -> None:
        """One line a finding, coloured by its grade."""
        style = {"alarm": "bold red", "watch": "yellow"}.get(finding.grade or "", "")
        self._print(finding_line(finding), "red" if finding.status == "failed" else style)

    def note(self, text: str) -> None:
        """One dim line."""
        self._print(text, "dim")
