"""Where examinations are kept: a database of JSON, and the arrays as safetensors files beside it.

``open_store()`` opens the per-user store, ``open_store("results/")`` a folder, ``open_store("runs.db")`` an
SQLite file, ``open_store("postgresql://host/name")`` a shared server. Findings are saved one by one as their
instruments answer, so that nothing measured is lost; several processes may use one store at a time.
"""

from __future__ import annotations

from microtome.finding import Examination
from microtome.store.browse import Filter, Line, Reading
from microtome.store.location import Location, locate
from microtome.store.store import Entry, Store, open_store

__all__ = [
    "Entry",
    "Filter",
    "Line",
    "Location",
    "Reading",
    "Store",
    "load_examination",
    "locate",
    "open_store",
]


def load_examination(id: str | None = None, store: str | None = None) -> Examination:
    """Read an examination back from a store.

    Args:
        id: an id or the unique beginning of one; None for the latest.
        store: the store it is in; None for the per-user one.

    Raises:
        StoreError: when there is none such; names the nearest.
    """
    with open_store(store) as opened:
        return opened.latest() if id is None else opened.load(id)
