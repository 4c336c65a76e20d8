"""What the pages share: the store, a few examinations kept in memory, and the atlas, which takes seconds to read."""

from __future__ import annotations

import contextlib
import importlib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numpy as np

from microtome.errors import StoreError
from microtome.finding import Examination, Finding
from microtome.progress import Progress
from microtome.store import Line, Reading, Store
from microtome.store.arrays import array_path

T = TypeVar("T")
KEPT = 12
"""Examinations kept in memory, without their arrays."""
KEPT_ARRAYS = 256 << 20
"""Bytes of arrays kept in memory."""
MOST_ARRAYS = 1 << 30
"""Bytes of one finding's arrays beyond which they are not read at all: a page is not worth all memory."""
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""Ids that are names of folders."""


class Lab:
    """One lab; safe to use from several threads."""

    def __init__(self, store: Store, atlas: Callable[[], Sequence[Any]] | None = None) -> None:
        self.store = store
        self._atlas = Atlas(atlas)
        self._kept: OrderedDict[tuple[Any, ...], Reading] = OrderedDict()
        self._arrays: OrderedDict[tuple[Any, ...], dict[str, np.ndarray]] = OrderedDict()
        self._records: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def atlas(self) -> Atlas:
        """The papers."""
        return self._atlas

    def warm(self) -> None:
        """Load in the background what the first comparison needs: scipy takes a second."""
        name = "microtome.web.comparing"
        threading.Thread(target=importlib.import_module, args=(name,), daemon=True).start()

    def line(self, exam_id: str) -> Line:
        """The line of an examination in a list.

        Raises:
            StoreError: MT135 when there is none such.
        """
        found = self.lines([exam_id])
        if not found and len(exam_id) < 128:
            found = self.lines(
                [self.store.resolve(exam_id)]
            )  # its beginning will do; else it names the nearest
        if not found:
            fix = "the list has all of them"
            raise StoreError("MT135", f"there is no examination '{exam_id[:80]}'", fix=fix)
        return found[0]

    def lines(self, ids: Sequence[str]) -> list[Line]:
        """Those there are, in this order; an id that is no name of a folder, in a store made elsewhere, is none."""
        return self.store.lines([each for each in ids if PLAIN.fullmatch(each)])

    def progress(self, line: Line) -> Progress | None:
        """How far a running examination is; None where nothing tells."""
        return self.store.progress(line.id) if PLAIN.fullmatch(line.id) else None

    def reading(self, line: Line) -> Reading:
        """The examination of a line, from memory where nothing has been added since."""
        key = (line.id, line.status, line.findings, line.measured, line.seconds, line.created)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = self.store.read(line.id)
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return made

    def arrays(self, line: Line, finding: Finding) -> dict[str, np.ndarray]:
        """Values of a finding's arrays, and nothing where they are damaged or absent."""
        key = (line.id, line.status, line.findings, line.seconds, finding.instrument)
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
                return self._arrays[key]
        try:
            made = self.arrays_of(line, finding)
        except StoreError:
            return {}
        with self._lock:
            self._arrays[key] = made
            while len(self._arrays) > 1 and self._bytes() > KEPT_ARRAYS:
                self._arrays.popitem(last=False)
        return made

    def arrays_of(self, line: Line, finding: Finding) -> dict[str, np.ndarray]:
        """Values of a finding's arrays, read anew.

        Raises:
            StoreError: MT136, where they are damaged or absent; MT519, where they are too large to be shown.
        """
        size = 0
        with contextlib.suppress(OSError, ValueError):  # the store says what is wrong with the file
            size = array_path(self.store.location.arrays, line.id, finding.instrument).stat().st_size
        if size > MOST_ARRAYS:
            said = f"its arrays have {size / 1e9:.1f} GB, too many to be shown here"
            fix = "load them in Python: microtome.load_examination"
            raise StoreError("MT519", said, where=finding.instrument, fix=fix)
        return self.store.arrays_of(line.id, finding)

    def records(self, line: Line, make: Callable[[], T]) -> T:
        """What is known of single examples; that of the last few examinations is kept."""
        key = (line.id, line.status, line.findings, line.seconds)
        with self._lock:
            if key in self._records:
                return cast(T, self._records[key])
        made = make()
        with self._lock:
            self._records[key] = made
            while len(self._records) > 3:
                self._records.popitem(last=False)
        return made

    def _bytes(self) -> int:
        return sum(a.nbytes for each in self._arrays.values() for a in each.values())

    def whole(self, line: Line) -> Examination:
        """The examination with the arrays that single examples are compared by; damaged ones are left out."""
        import msgspec

        reading = self.reading(line)
        findings = {
            name: msgspec.structs.replace(
                f, arrays=self.arrays(line, f) if {"samples", "rows"} <= f.arrays.keys() else {}
            )
            for name, f in reading.exam.findings.items()
        }
        return msgspec.structs.replace(reading.exam, findings=findings)


class Atlas:
    """The papers' entries, read once in a thread of their own: that loads every instrument."""

    def __init__(self, read: Callable[[], Sequence[Any]] | None) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._found: tuple[Any, ...] | None = None
        self.failed = ""

    @property
    def known(self) -> bool:
        """Whether there is an atlas at all."""
        return self._read is not None

    def begin(self) -> None:
        """Read in the background, unless that has begun."""
        with self._lock:
            if self._thread is None and self._read is not None:
                self._thread = threading.Thread(target=self._run, name="atlas", daemon=True)
                self._thread.start()

    def entries(self, wait: float) -> tuple[Any, ...] | None:
        """The entries, or None when they are not there after ``wait`` seconds."""
        self.begin()
        if self._thread is not None:
            self._thread.join(wait)
        return self._found

    def _run(self) -> None:
        try:
            self._found = tuple(self._read()) if self._read is not None else ()
        except Exception as error:  # said on the page; the lab goes on
            self.failed = f"{type(error).__name__}: {error}"
