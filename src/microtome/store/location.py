"""From what a user writes for a store to a database address and a folder for the arrays."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from microtome.errors import StoreError

DATABASE = "microtome.db"
NETWORK_FILESYSTEMS = frozenset(
    [
        *("nfs", "nfs3", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs"),
        *("glusterfs", "fuse.glusterfs", "fuse.sshfs", "virtiofs"),
    ]
)


class Location(msgspec.Struct, frozen=True, kw_only=True):
    """Where one store lives."""

    url: URL
    folder: Path
    """Holds ``arrays`` and the state of running folds."""
    file: Path | None = None
    """The SQLite file; None for a server."""
    prefix: str = ""
    """Keeps the arrays of two databases in one folder apart."""

    @property
    def arrays(self) -> Path:
        """Folder of the safetensors files."""
        return self.folder / f"{self.prefix}arrays"

    @property
    def runs(self) -> Path:
        """Folder where running examinations keep their state."""
        return self.folder / f"{self.prefix}runs"

    def text(self) -> str:
        """Name the store for a message; a password is not shown."""
        return str(self.file) if self.file else self.url.render_as_string(hide_password=True)


def data_folder() -> Path:
    """Return the per-user data folder: ``$XDG_DATA_HOME/microtome``, else ``~/.local/share/microtome``."""
    base = os.environ.get("XDG_DATA_HOME", "")
    # The XDG specification says to ignore a relative path.
    root = Path(base) if base and Path(base).is_absolute() else Path.home() / ".local" / "share"
    return root / "microtome"


def locate(url: str | os.PathLike[str] | None = None) -> Location:
    """Find the store meant by a folder, a database file or a database URL; nothing is created.

    Without one, ``MICROTOME_STORE`` decides, else the per-user data folder. The arrays of a database server
    lie in ``MICROTOME_ARRAYS`` (a folder shared by its users), else in the per-user data folder.

    Raises:
        StoreError: MT131, when this is no address of a store.
    """
    given = os.fspath(url) if url is not None else os.environ.get("MICROTOME_STORE", "")
    if not given:
        return _in_file(data_folder() / DATABASE)
    if "://" not in given:
        path = Path(given).expanduser()
        is_file = path.is_file() or (path.suffix in (".db", ".sqlite", ".sqlite3") and not path.is_dir())
        return _in_file(path if is_file else path / DATABASE)
    try:
        address = make_url(given)
    except (ArgumentError, ValueError) as error:
        raise StoreError("MT131", f"this is no database URL: {error}", where=given, fix=_FORMS) from None
    kind = address.get_backend_name()
    if kind == "sqlite":
        if not address.database or address.database == ":memory:":
            problem = "an SQLite store needs a file: arrays are kept beside it"
            raise StoreError("MT131", problem, where=given, fix="sqlite:///folder/runs.db")
        return _in_file(Path(address.database).expanduser())
    if kind in ("postgresql", "postgres"):
        # psycopg 3 is the driver the 'postgres' extra brings; bare postgresql:// would ask for psycopg2.
        driver = "postgresql+psycopg" if "+" not in address.drivername else address.drivername
        arrays = os.environ.get("MICROTOME_ARRAYS", "")
        folder = Path(arrays).expanduser() if arrays else data_folder()
        return Location(url=address.set(drivername=driver), folder=folder, prefix=_server_prefix(address))
    raise StoreError("MT131", f"a store in '{kind}' is not known", where=given, fix=_FORMS)


_FORMS = "give a folder, a file such as runs.db, sqlite:///path.db or postgresql://user@host/name"


def _in_file(path: Path) -> Location:
    path = Path(os.path.abspath(path))
    prefix = "" if path.name == DATABASE else f"{path.stem}-"
    url = URL.create("sqlite", database=str(path))
    return Location(url=url, folder=path.parent, file=path, prefix=prefix)


def _server_prefix(address: URL) -> str:
    parts = (address.host or "local", str(address.port or 5432), address.database or "")
    return "".join(c if c.isalnum() else "-" for c in "-".join(parts)) + "-"


def on_network(path: Path) -> bool:
    """Whether the folder lies on a network filesystem, as far as ``/proc/mounts`` tells.

    SQLite's write-ahead log needs shared memory among all its users, which such filesystems do not give; some
    pretend to, and corrupt the database.
    """
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    target, best, kind = str(path.resolve()), "", ""
    for mount in mounts:
        fields = mount.split()
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ")
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind in NETWORK_FILESYSTEMS
