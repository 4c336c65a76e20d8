"""Where examinations are kept: a database of JSON, and the arrays as safetensors files beside it.

``open_store()`` opens the per-user store, ``open_store("results/")`` a folder, ``open_store("runs.db")`` an
SQLite file, ``open_store("postgresql://host/name")`` a shared server. Findings are saved one by one as their
instruments answer, so that nothing measured is lost; several processes may use one store at a time.
"""

from microtome.store.location import Location, locate
from microtome.store.store import Entry, Store, open_store

__all__ = ["Entry", "Location", "Store", "locate", "open_store"]
