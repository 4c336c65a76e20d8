"""Findings: the typed answers of instruments, as plain values.

Everything that reads findings (store, report, web, command line, comparison) depends on this module alone,
so it imports neither torch nor any leaf. Arrays are numpy arrays; the store keeps them beside the JSON.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec
import numpy as np

SCHEMA_VERSION = 1

Status = Literal["measured", "refused", "failed", "missing"]
Grade = Literal["good", "watch", "alarm"]
Cell = str | float | int | bool | None

GRADE_ORDER: Mapping[str | None, int] = {None: 0, "good": 1, "watch": 2, "alarm": 3}


class Quantity(msgspec.Struct, frozen=True, kw_only=True):
    """One number with its unit and, where it has one, its interval.

    ``value`` must be finite: an instrument that cannot measure refuses, it does not answer NaN.
    ``low``/``high`` bound the ``confidence`` interval, ``how`` names the method ("Wilson", "t over rows").
    """

    value: float
    unit: str = "1"
    low: float | None = None
    high: float | None = None
    confidence: float = 0.95
    how: str = ""
    better: Literal["lower", "higher", ""] = ""

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):
            number = getattr(self, name)
            if number is None:
                continue
            if not math.isfinite(number):
                raise ValueError(f"a quantity must be finite, got {name}={number}")
            # A whole number given as an int must not come back from the store as another value (1, then 1.0).
            msgspec.structs.force_setattr(self, name, float(number))

    def text(self) -> str:
        """Render as ``0.031 [0.024, 0.039]`` with the unit when it has one."""
        unit = "" if self.unit in ("1", "") else f" {self.unit}"
        body = format_number(self.value)
        if self.low is not None and self.high is not None:
            body += f" [{format_number(self.low)}, {format_number(self.high)}]"
        return body + unit


class Threshold(msgspec.Struct, frozen=True, kw_only=True):
    """When a quantity deserves worry, and who says so.

    A value beyond ``watch`` (in the worse direction) is graded "watch", beyond ``alarm`` "alarm".
    """

    quantity: str
    watch: float
    alarm: float
    worse: Literal["above", "below"] = "above"
    source: str

    def __post_init__(self) -> None:
        for name in ("watch", "alarm"):
            msgspec.structs.force_setattr(self, name, float(getattr(self, name)))

    def grade(self, value: float) -> Grade:
        """Grade one value of the quantity."""
        sign = 1.0 if self.worse == "above" else -1.0
        if sign * value > sign * self.alarm:
            return "alarm"
        return "watch" if sign * value > sign * self.watch else "good"

    def text(self) -> str:
        """Say the rule in words."""
        return (
            f"{self.quantity}: watch {self.worse} {format_number(self.watch)}, "
            f"alarm {self.worse} {format_number(self.alarm)} ({self.source})"
        )


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """A small table, rows already in reading order."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {len(row)} cells in a table of {len(self.columns)} columns")
            for cell in row:
                if isinstance(cell, float) and not math.isfinite(cell):
                    raise ValueError(f"a table cell must be finite or None, got {cell} in row {row!r}")


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """A Vega-Lite specification with its data inline: report, web page and notebook draw the same thing."""

    title: str
    spec: dict[str, Any]
    caption: str = ""


class Coverage(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the data and of the network a finding speaks of; the rest is unknown."""

    rows: int
    rows_total: int
    layers: int | None = None
    layers_total: int | None = None

    def text(self) -> str:
        """Say it in words."""
        words = f"{self.rows} of {self.rows_total} examples"
        if self.layers is not None:
            words += f", {self.layers} of {self.layers_total} layers"
        return words


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of one instrument about one subject.

    A leaf fills ``headline``, ``summary`` and what it measured; the run stamps ``instrument``, ``question``,
    ``options``, ``papers``, ``coverage``, ``grade`` and ``seconds``. When the headline is a mean over
    examples, ``arrays["samples"]`` ([n] float) and ``arrays["rows"]`` ([n] int, example ids) let a
    comparison be paired.
    """

    headline: str = ""
    """Key of the deciding number in ``quantities``."""
    summary: str = ""
    """One sentence a reader understands without the rest."""
    quantities: dict[str, Quantity] = {}
    tables: dict[str, Table] = {}
    figures: dict[str, Figure] = {}
    arrays: dict[str, np.ndarray] = {}
    threshold: Threshold | None = None
    caveats: tuple[str, ...] = ()

    instrument: str = ""
    question: str = ""
    how_to_read: str = ""
    papers: tuple[str, ...] = ()
    options: dict[str, Any] = {}
    status: Status = "measured"
    reason: str = ""
    """Why it was refused, failed or is missing."""
    grade: Grade | None = None
    coverage: Coverage | None = None
    seconds: float = 0.0
    rounds: int = 0

    @property
    def value(self) -> float:
        """The deciding number.

        Raises:
            ValueError: if nothing was measured; the message says why.
        """
        if self.status != "measured":
            raise ValueError(f"{self.instrument} has no value: {self.status}, {self.reason}")
        return self.quantities[self.headline].value

    @property
    def interval(self) -> tuple[float, float] | None:
        """The deciding number's confidence interval, where it has one."""
        quantity = self.quantities.get(self.headline)
        if quantity is None or quantity.low is None or quantity.high is None:
            return None
        return quantity.low, quantity.high

    def same_measurement(self, other: Finding) -> bool:
        """Whether both say exactly the same, whatever time they took."""
        return encode_json(strip_cost(self)) == encode_json(strip_cost(other)) and all(
            np.array_equal(a, other.arrays[k]) for k, a in self.arrays.items()
        )


class Examination(msgspec.Struct, kw_only=True):
    """Many findings about one subject, with all that is needed to read and repeat them."""

    id: str
    created: str
    """UTC, ISO 8601."""
    subject: dict[str, Any]
    """Plain description: name, task, what was inferred, parameters, rows, layers, device, hashes."""
    findings: dict[str, Finding]
    seed: int = 0
    status: Literal["complete", "partial", "stopped", "running"] = "complete"
    command: str = ""
    versions: dict[str, str] = {}
    plan: dict[str, Any] = {}
    """Passes, signals and costs, as ``microtome plan`` prints them, and what each pass really took."""
    seconds: float = 0.0
    calibration: dict[str, list[dict[str, Any]]] = {}
    """Per instrument: the specimen readings with truth and error, when they were taken."""
    schema: int = SCHEMA_VERSION

    def __getitem__(self, name: str) -> Finding:
        """Look a finding up by ``room/method`` or by the method alone."""
        from microtome.errors import UsageError, nearest

        if name in self.findings:
            return self.findings[name]
        matches = [key for key in self.findings if key.rsplit("/", 1)[-1] == name]
        if len(matches) == 1:
            return self.findings[matches[0]]
        problem = "several findings are" if matches else "no finding is"
        raise UsageError(
            "MT120",
            f"{problem} called '{name}'",
            where=f"examination {self.id}",
            fix=nearest(name, self.findings),
        )

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings.values())

    def __len__(self) -> int:
        return len(self.findings)

    def rooms(self) -> dict[str, list[Finding]]:
        """Findings by room, in the order they were planned."""
        rooms: dict[str, list[Finding]] = {}
        for name, finding in self.findings.items():
            rooms.setdefault(name.split("/", 1)[0], []).append(finding)
        return rooms

    def worries(self) -> list[Finding]:
        """What deserves attention first: alarms, then what failed, then watches."""
        order = {"alarm": 0, "failed": 1, "watch": 2}
        keyed = [(order.get(f.grade or f.status, 9), f) for f in self]
        return [f for rank, f in sorted(keyed, key=lambda pair: pair[0]) if rank < 9]

    def report(self, path: str) -> str:
        """Write one self-contained HTML file and return its path."""
        from microtome.report import write_report

        return str(write_report(self, path))

    def save(self, store: str | None = None) -> str:
        """Put the examination into a store (the per-user one unless given) and return its id."""
        from microtome.store import open_store

        with open_store(store) as opened:
            opened.save(self)
        return self.id

    def table(self) -> str:
        """The headline numbers as plain text."""
        from microtome.report.text import table_text

        return table_text(self)

    def _repr_html_(self) -> str:
        from microtome.report import notebook_html

        return notebook_html(self)


def format_number(value: float) -> str:
    """Three significant digits, integers whole, extremes in scientific notation."""
    if value == int(value) and abs(value) < 1e7:
        return str(int(value))
    if abs(value) >= 1e5 or abs(value) < 1e-4:
        return f"{value:.2e}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"


def strip_cost(finding: Finding) -> Finding:
    """Drop what may differ between two runs that measured the same."""
    return msgspec.structs.replace(finding, seconds=0.0)


def _encode_special(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"dtype": str(value.dtype), "shape": list(value.shape)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, str):  # a string of another class, such as torch.__version__
        return str(value)
    raise TypeError(f"cannot write a {type(value).__name__} into a finding")


def encode_json(value: Any) -> bytes:
    """JSON of findings and examinations; arrays appear as their dtype and shape (values live beside)."""
    return msgspec.json.encode(value, enc_hook=_encode_special)


def _decode_special(kind: type, value: Any) -> Any:
    if kind is np.ndarray:
        # One zero seen from everywhere: a damaged record that states a huge shape costs no memory.
        return np.broadcast_to(np.zeros((), dtype=value["dtype"]), value["shape"])
    raise TypeError(f"cannot read a {kind}")


def decode_examination(data: bytes) -> Examination:
    """Read an examination written by :func:`encode_json`; array values are zeros until attached."""
    return msgspec.json.decode(data, type=Examination, dec_hook=_decode_special)


def decode_finding(data: bytes) -> Finding:
    """Read one finding written by :func:`encode_json`; array values are zeros until attached."""
    return msgspec.json.decode(data, type=Finding, dec_hook=_decode_special)


def refused(reason: str) -> Finding:
    """A refusal is a value too."""
    return Finding(status="refused", reason=reason)
