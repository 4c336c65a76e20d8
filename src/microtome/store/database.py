"""The database: four small tables, short transactions, and one clear sentence for everything that fails.

SQLite runs with a write-ahead log, so that readers and the one writer do not wait for each other; where the
log cannot be had (network filesystems) it falls back to the plain rollback journal. Every transaction opens
its own connection: cheap for SQLite, and safe when the process forks.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DatabaseError, InterfaceError, OperationalError, SQLAlchemyError

from microtome.errors import MissingExtraError, StoreError
from microtome.finding import SCHEMA_VERSION
from microtome.store.location import Location, on_network

BUSY_SECONDS = 30.0

metadata = sa.MetaData()
version_table = sa.Table("microtome_schema", metadata, sa.Column("version", sa.Integer, primary_key=True))
examinations = sa.Table(
    "examinations",
    metadata,
    sa.Column("id", sa.String(128), primary_key=True),
    sa.Column("created", sa.String(64), nullable=False, index=True),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("body", sa.Text, nullable=False),  # the examination's JSON without findings and status
)
findings = sa.Table(
    "findings",
    metadata,
    sa.Column("exam_id", sa.ForeignKey("examinations.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("instrument", sa.String(256), primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("grade", sa.String(16)),
    sa.Column("body", sa.Text, nullable=False),  # the finding's JSON; arrays as dtype and shape
    sa.Index("findings_states", "exam_id", "status", "grade"),  # counting must not read the bodies
)
tags = sa.Table(
    "tags",
    metadata,
    sa.Column("exam_id", sa.ForeignKey("examinations.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("tag", sa.String(64), primary_key=True, index=True),
)


class Database:
    """One open database; see :meth:`reading` and :meth:`writing`."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self.read_only = False
        self.has_tags = True
        """False only for a store of an earlier microtome that can only be read."""
        self.journal = ""
        with self._explained():
            self._engine = self._connect(location)
            self._prepare()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Open a transaction that sees one consistent state."""
        with self._explained(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """Open a transaction that holds the write lock from its start.

        Taking the lock late could fail at once when another process wrote in between; taken early, it waits.

        Raises:
            StoreError: MT130, when the store can only be read.
        """
        if self.read_only:
            fix = "choose another with --store or MICROTOME_STORE"
            raise StoreError("MT130", "the store can only be read", where=self.location.text(), fix=fix)
        with self._explained(), self._engine.execution_options(writes=True).begin() as connection:
            yield connection

    def upsert(self, table: sa.Table, values: dict[str, Any]) -> Any:
        """Build an insert that replaces the row of the same key; both dialects say it alike."""
        build: Any = sqlite.insert if self._engine.dialect.name == "sqlite" else postgresql.insert
        keys = [column.name for column in table.primary_key]
        statement = build(table).values(**values)
        return statement.on_conflict_do_update(
            index_elements=keys, set_={name: value for name, value in values.items() if name not in keys}
        )

    def close(self) -> None:
        """Let go of every connection."""
        self._engine.dispose()

    def _connect(self, location: Location) -> sa.Engine:
        if location.file is None:
            try:
                return sa.create_engine(location.url, pool_pre_ping=True)
            except ImportError:
                raise MissingExtraError("psycopg", "postgres", "a store on a PostgreSQL server") from None
        folder = location.folder
        if not location.file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            # Created here, so that a refusal names the cause; SQLite only says "unable to open".
            os.close(os.open(location.file, os.O_RDWR | os.O_CREAT, 0o644))
        self.read_only = not (os.access(location.file, os.W_OK) and os.access(folder, os.W_OK))
        path = location.file
        query = "?mode=rw"
        if self.read_only:
            # A log left behind must be read; without one, nothing can change under us and no lock is needed.
            leftover = path.with_name(path.name + "-wal")
            pending = leftover.exists() and leftover.stat().st_size > 0
            query = "?mode=ro" if pending else "?mode=ro&immutable=1"
        uri = path.as_uri() + query

        def open_file() -> sqlite3.Connection:
            connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, check_same_thread=False)
            connection.isolation_level = None  # transactions are begun by hand, below
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute("PRAGMA synchronous=FULL")
            return connection

        engine = sa.create_engine("sqlite://", creator=open_file, poolclass=sa.pool.NullPool)

        def begin(connection: sa.Connection) -> None:
            writes = connection.get_execution_options().get("writes", False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

        sa.event.listen(engine, "begin", begin)
        if not self.read_only:
            self._choose_journal(open_file(), on_network(folder))
        return engine

    def _choose_journal(self, connection: sqlite3.Connection, network: bool) -> None:
        """Write-ahead log where it works, rollback journal elsewhere; the mode stays in the file."""
        try:
            now = str(connection.execute("PRAGMA journal_mode").fetchone()[0])
            wanted = "delete" if network else "wal"
            if now != wanted:
                try:
                    now = str(connection.execute(f"PRAGMA journal_mode={wanted}").fetchone()[0])
                except sqlite3.OperationalError as error:
                    if "locked" not in str(error) and "busy" not in str(error):
                        now = str(connection.execute("PRAGMA journal_mode=DELETE").fetchone()[0])
                    # Someone else is using the file at this moment; the mode it has serves as well.
            self.journal = now
        finally:
            connection.close()

    def _prepare(self) -> None:
        with self._engine.begin() as connection:
            inspector = sa.inspect(connection)
            exists, self.has_tags = (inspector.has_table(t.name) for t in (version_table, tags))
            stated = connection.execute(sa.select(version_table.c.version)).scalar() if exists else None
        if stated is None:
            if self.read_only:
                raise StoreError("MT132", "this is not a microtome store", where=self.location.text())
            with self._creating() as connection:
                if connection.execute(sa.select(version_table.c.version)).scalar() is None:
                    connection.execute(sa.insert(version_table).values(version=SCHEMA_VERSION))
            return
        if stated <= SCHEMA_VERSION and not (self.has_tags or self.read_only):
            with self._creating():  # tables that came later; earlier versions leave them alone
                pass
        if stated > SCHEMA_VERSION:
            raise StoreError(
                "MT133",
                f"the store has schema {stated}, this microtome reads up to {SCHEMA_VERSION}",
                where=self.location.text(),
                fix="upgrade microtome, or choose another store with --store",
            )

    @contextmanager
    def _creating(self) -> Iterator[sa.Connection]:
        """A transaction in which all tables and indices are there."""
        with self._engine.execution_options(writes=True).begin() as connection:
            if self._engine.dialect.name == "postgresql":  # two first users must not both create tables
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(6647112093)")
            metadata.create_all(connection)
            for index in findings.indexes:
                index.create(connection, checkfirst=True)
            self.has_tags = True
            yield connection

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn whatever the database or the filesystem says into one clear sentence."""
        where = self.location.text()
        try:
            yield
        except sqlite3.Error as error:
            raise _explain(error, str(error), where) from error
        except (OperationalError, InterfaceError, DatabaseError) as error:
            raise _explain(error.orig or error, str(error.orig), where) from error
        except SQLAlchemyError as error:
            raise StoreError("MT138", f"the database failed: {error}", where=where) from error
        except OSError as error:
            raise unwritable(error, where) from error


def unwritable(error: OSError, where: str) -> StoreError:
    """Say why a file of the store could not be written."""
    reason = (error.strerror or str(error)).lower()
    path = str(error.filename) if error.filename else where
    fix = "choose another with --store or MICROTOME_STORE"
    return StoreError("MT130", f"the store cannot be written: {reason}", where=path, fix=fix)


def _explain(error: BaseException, words: str, where: str) -> StoreError:
    text = words.strip().splitlines()[0] if words.strip() else type(error).__name__
    lowered = text.lower()
    if "not a database" in lowered or "malformed" in lowered or "no such column" in lowered:
        fix = "restore it from a backup, move it away to begin afresh, or choose another with --store"
        return StoreError(
            "MT132", f"the database is damaged or not a microtome store: {text}", where=where, fix=fix
        )
    if "readonly" in lowered or "unable to open" in lowered or "read-only" in lowered or "full" in lowered:
        fix = "choose another with --store or MICROTOME_STORE"
        return StoreError("MT130", f"the store cannot be written: {text}", where=where, fix=fix)
    if "locked" in lowered or "busy" in lowered:
        fix = "another process is writing; try again"
        return StoreError("MT137", f"the store stayed locked for {BUSY_SECONDS:.0f} s", where=where, fix=fix)
    if "connection" in lowered or "authentication" in lowered or "does not exist" in lowered:
        fix = "check the address, the password and that the server runs"
        return StoreError("MT130", f"the database server cannot be used: {text}", where=where, fix=fix)
    return StoreError("MT138", f"the database failed: {text}", where=where)
