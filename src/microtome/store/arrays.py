"""The arrays of findings: one safetensors file a finding, written so that a reader never sees half of one."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from microtome.errors import StoreError

INTEGERS = frozenset(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))
DTYPES = INTEGERS | {"bool", "float16", "float32", "float64", "complex64"}


def array_path(folder: Path, exam_id: str, instrument: str) -> Path:
    """Return where a finding's arrays lie: ``<folder>/<exam>/<room>__<method>.safetensors``."""
    # All else in a name is percent-encoded, so that no name leaves the folder or meets another's file.
    plain = quote(instrument.replace("__", "%5F%5F"), safe="/%@+=, #[]()").replace("/", "__")
    return folder / exam_id / f"{plain}.safetensors"


def storable(instrument: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Bring arrays into the byte order and layout of the file.

    Raises:
        StoreError: MT134, for what a safetensors file cannot hold; names the array and says what to do.
    """
    ready: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        where = f"{instrument}, arrays['{name}']"
        if not isinstance(array, np.ndarray):
            kind = type(array).__name__
            raise StoreError("MT134", f"a {kind} is not a numpy array", where=where, fix="convert it first")
        if array.dtype.kind in "USOTV" or str(array.dtype.newbyteorder("=")) not in DTYPES:
            fix = "put text into a table" if array.dtype.kind in "USOT" else "convert it to float64 or int64"
            raise StoreError("MT134", f"an array of {array.dtype} cannot be stored", where=where, fix=fix)
        if name == "__metadata__" or not isinstance(name, str):
            raise StoreError("MT134", f"no array can be called {name!r}", where=where, fix="rename it")
        ready[name] = np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")
    return ready


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the file whole or not at all; without arrays an earlier file is removed.

    Raises:
        OSError: also for what safetensors says of a full disk in a type of its own.
    """
    if not arrays:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    os.close(descriptor)
    try:
        save_file(dict(arrays), name)
        with open(name, "rb+") as written:
            os.fsync(written.fileno())  # else a power cut may leave the row without its bytes
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, SafetensorError):
            raise OSError(errno.EIO, str(error).rpartition("I/O error: ")[2], str(path)) from error
        raise


def read_arrays(path: Path, expected: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Read the file and hold it against the dtypes and shapes that the database states.

    Raises:
        StoreError: MT136, when the file is absent, damaged or not the one the database speaks of.
    """
    try:
        found = load_file(path)
    except FileNotFoundError:
        fix = "restore the file, or set MICROTOME_ARRAYS to the folder that holds it"
        raise StoreError("MT136", "the arrays of a finding are missing", where=str(path), fix=fix) from None
    except (SafetensorError, ValueError, OSError) as error:
        fix = "restore the file from a backup, or examine again"
        raise StoreError("MT136", f"the arrays cannot be read: {error}", where=str(path), fix=fix) from None
    stated = {name: (str(a.dtype), a.shape) for name, a in expected.items()}
    if {name: (str(a.dtype), a.shape) for name, a in found.items()} != stated:
        fix = "restore the file from a backup, or examine again"
        raise StoreError("MT136", "the arrays are not those the finding speaks of", where=str(path), fix=fix)
    return {name: found[name] for name in expected}


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
