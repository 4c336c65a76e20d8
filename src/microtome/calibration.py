"""How well does each instrument read? Every truth of every specimen, against what is read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from microtome.finding import Finding
from microtome.instrument import Instrument
from microtome.passes import Run
from microtome.progress import Watcher
from microtome.registry import instrument, select
from microtome.specimen import Specimen, Truth, specimens


class CalibrationRow(msgspec.Struct, frozen=True, kw_only=True):
    """One reading beside its truth. ``reading`` is None when the instrument refused or failed; ``note`` says why."""

    instrument: str
    specimen: str
    quantity: str
    reading: float | None
    truth: float
    error: float | None
    tolerance: float
    passed: bool
    why: str
    note: str = ""


def calibrate(only: Sequence[str] = (), watcher: Watcher | None = None) -> list[CalibrationRow]:
    """Run the chosen instruments on every specimen that knows their answer.

    Returns:
        One row a truth, in reading order of the instruments.
    """
    names = select((only,) if isinstance(only, str) else only)
    rows: list[CalibrationRow] = []
    for build in specimens().values():
        made = build()
        truths = [t for t in made.truths if t.instrument in names]
        if truths:
            rows += read_specimen(made, truths, watcher)
    order = {name: i for i, name in enumerate(names)}
    return sorted(rows, key=lambda row: (order[row.instrument], row.specimen, row.quantity))


def read_specimen(
    made: Specimen, truths: Sequence[Truth], watcher: Watcher | None = None
) -> list[CalibrationRow]:
    """Readings of one specimen; instruments with different options take turns in as few runs as can be."""
    waiting = list(truths)
    rows: list[CalibrationRow] = []
    while waiting:
        chosen: dict[str, Instrument] = {}
        now: list[Truth] = []
        for truth in waiting:
            configured = instrument(truth.instrument).configured(dict(truth.options))
            if chosen.setdefault(truth.instrument, configured) == configured:
                now.append(truth)
        waiting = [t for t in waiting if t not in now]
        findings = Run(made.subject, chosen, budget=1 << 29, watcher=watcher).execute()
        rows += [_row(made, truth, findings[truth.instrument]) for truth in now]
    return rows


def _row(made: Specimen, truth: Truth, finding: Finding) -> CalibrationRow:
    reading: float | None = None
    note = ""
    if finding.status != "measured":
        note = f"{finding.status}: {finding.reason}"
    elif truth.read is not None:
        reading = float(truth.read(finding))
    elif truth.quantity in finding.quantities:
        reading = finding.quantities[truth.quantity].value
    else:
        note = f"the finding has no quantity '{truth.quantity}'"
    error = None if reading is None else abs(reading - truth.value)
    return CalibrationRow(
        instrument=truth.instrument,
        specimen=made.name,
        quantity=truth.quantity,
        reading=reading,
        truth=truth.value,
        error=error,
        tolerance=truth.tolerance,
        passed=error is not None and error <= truth.tolerance,
        why=truth.why,
        note=note,
    )


def readings(
    names: Sequence[str], watcher: Watcher | None = None, take: bool = True
) -> dict[str, list[dict[str, object]]]:
    """Readings of the named instruments for a report, from the cache when the code has not changed.

    Args:
        take: measure what is not cached; otherwise only what is known is returned.
    """
    path = _cache()
    try:
        known = msgspec.json.decode(path.read_bytes(), type=dict[str, list[CalibrationRow]])
    except (OSError, msgspec.DecodeError):
        known = {}
    missing = [name for name in names if name not in known]
    if missing and take:
        if watcher is not None:
            watcher.note(f"calibrating {len(missing)} instruments on specimens (kept for the next time)")
        for name in missing:
            known[name] = []
        for row in calibrate(missing):
            known[row.instrument].append(row)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_bytes(msgspec.json.encode(known))
            temporary.replace(path)
        except OSError as error:
            if watcher is not None:
                watcher.note(f"calibration is not kept: {error}")
    return {name: [msgspec.to_builtins(row) for row in known[name]] for name in names if name in known}


def _cache() -> Path:
    """A file named after everything a reading depends on."""
    import torch

    import microtome

    digest = hashlib.blake2b(digest_size=8)
    root = Path(__file__).parent
    for part in ("signals", "folds", "passes", "instruments", "specimens"):
        for path in sorted((root / part).rglob("*.py")):
            digest.update(path.read_bytes())
    digest.update(f"{microtome.__version__} {torch.__version__}".encode())
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "microtome" / f"calibration-{digest.hexdigest()}.json"
