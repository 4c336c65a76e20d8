"""microtome: a laboratory for neural networks.

``import microtome as mt; exam = mt.examine(model, loader)``. Everything heavy is imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "examine": "microtome.examination",
    "plan": "microtome.examination",
    "resume": "microtome.examination",
    "Subject": "microtome.subject",
    "Finding": "microtome.finding",
    "Examination": "microtome.finding",
    "Quantity": "microtome.finding",
    "Table": "microtome.finding",
    "Threshold": "microtome.finding",
    "Instrument": "microtome.instrument",
    "Refusal": "microtome.errors",
    "MicrotomeError": "microtome.errors",
    "compare": "microtome.comparison",
    "calibrate": "microtome.calibration",
    "load_examination": "microtome.store",
    "signal": "microtome.signals",
}

if TYPE_CHECKING:
    from microtome.calibration import calibrate as calibrate
    from microtome.comparison import compare as compare
    from microtome.errors import MicrotomeError as MicrotomeError
    from microtome.errors import Refusal as Refusal
    from microtome.examination import examine as examine
    from microtome.examination import plan as plan
    from microtome.examination import resume as resume
    from microtome.finding import Examination as Examination
    from microtome.finding import Finding as Finding
    from microtome.finding import Quantity as Quantity
    from microtome.finding import Table as Table
    from microtome.finding import Threshold as Threshold
    from microtome.instrument import Instrument as Instrument
    from microtome.signals import signal as signal
    from microtome.store import load_examination as load_examination
    from microtome.subject import Subject as Subject

__all__ = [*_LAZY, "__version__"]


def __getattr__(name: str) -> Any:
    import importlib

    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'microtome' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
