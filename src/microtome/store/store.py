"""The store: save findings as they come, load examinations whole."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import msgspec
import numpy as np
import sqlalchemy as sa

from microtome.errors import StoreError, nearest
from microtome.finding import SCHEMA_VERSION, Examination, Finding, decode_examination, encode_json
from microtome.store.arrays import array_path, read_arrays, storable, write_arrays
from microtome.store.browse import Browser
from microtome.store.database import Database, examinations, findings, tags, unwritable
from microtome.store.location import Location, locate

Outcome = Literal["complete", "partial", "stopped", "running"]
LATEST = "latest"
_ARRAY = "\0array\0"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of :meth:`Store.list`."""

    id: str
    created: str
    subject: str
    status: Outcome
    seconds: float
    findings: int
    """How many instruments have answered, in whatever way."""
    measured: int
    alarms: int


def open_store(url: str | os.PathLike[str] | None = None, *, create: bool = True) -> Store:
    """Open the store at a folder, a database file or a database URL; the per-user one without any.

    Args:
        url: where it is.
        create: make it when it is not there; who only reads does not, lest a mistyped folder come into being.

    Raises:
        StoreError: when it cannot be opened (MT130 to MT138), with what to do about it; MT182 when it is not there.
    """
    place = locate(url)
    if not create and url is not None and place.file is not None and not place.folder.is_dir():
        raise StoreError(
            "MT182",
            "there is no store here",
            where=str(place.folder),
            fix="give the --store that was examined into",
        )
    return Store(place)


class Store(Browser):
    """Keeps examinations. A context manager; safe to use from several processes at a time."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self._database = Database(location)

    def __enter__(self) -> Self:
        """Give the open store."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    @property
    def journal(self) -> str:
        """SQLite's journal mode as it was granted; empty for a server or a store that can only be read."""
        return self._database.journal

    # --- writing -------------------------------------------------------------------------------------

    def begin(self, exam: Examination) -> None:
        """Enter an examination as running; findings it already has are saved too, earlier ones stay."""
        self._write(msgspec.structs.replace(exam, status="running"), replace=False)

    def save(self, exam: Examination) -> str:
        """Put the whole examination in, in place of whatever was there under its id; return the id."""
        self._write(exam, replace=True)
        return exam.id

    def save_finding(self, exam_id: str, finding: Finding) -> None:
        """Save one answer as it comes. The examination must have begun.

        Raises:
            StoreError: MT135, when no such examination has begun; MT134, when the finding cannot be stored.
        """
        row, arrays = self._pack(exam_id, finding.instrument, finding)
        with self._database.reading() as connection:
            self._require(
                connection, exam_id
            )  # before any file, so that none is left without its examination
        self._write_arrays(exam_id, finding.instrument, arrays)
        with self._database.writing() as connection:
            self._require(connection, exam_id)
            connection.execute(self._database.upsert(findings, row | self._position(connection, row)))

    def finish(self, exam_id: str, status: Outcome) -> None:
        """Say how an examination ended.

        Raises:
            StoreError: MT135, when there is no such examination.
        """
        change = sa.update(examinations).where(examinations.c.id == exam_id).values(status=status)
        with self._database.writing() as connection:
            self._require(connection, exam_id)
            connection.execute(change)

    def delete(self, exam_id: str) -> str:
        """Remove an examination, its arrays and its running state; return its full id."""
        full = self.resolve(exam_id)
        with self._database.writing() as connection:
            for table in (findings, tags):
                connection.execute(sa.delete(table).where(table.c.exam_id == full))
            connection.execute(sa.delete(examinations).where(examinations.c.id == full))
        for folder in (self.location.arrays / full, self.location.runs / full):
            shutil.rmtree(folder, ignore_errors=True)
        return full

    def run_folder(self, exam_id: str) -> Path:
        """Return the folder where a running examination keeps the state of its folds; it exists afterwards.

        Raises:
            StoreError: MT130, when it cannot be made.
        """
        folder = self.location.runs / _checked(exam_id)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(error, str(folder)) from error
        return folder

    # --- reading -------------------------------------------------------------------------------------

    def list(self) -> list[Entry]:
        """Return all examinations, newest first."""
        measured = sa.func.sum(sa.case((findings.c.status == "measured", 1), else_=0))
        alarms = sa.func.sum(sa.case((findings.c.grade == "alarm", 1), else_=0))
        columns = [examinations.c[name] for name in ("id", "created", "subject", "status", "seconds")]
        query = (
            sa.select(*columns, sa.func.count(findings.c.instrument), measured, alarms)
            .select_from(examinations.outerjoin(findings))
            .group_by(*columns)
            .order_by(examinations.c.created.desc(), examinations.c.id.desc())
        )
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        return [
            Entry(
                id=row[0],
                created=row[1],
                subject=row[2],
                status=row[3],
                seconds=row[4],
                findings=row[5],
                measured=row[6] or 0,
                alarms=row[7] or 0,
            )
            for row in rows
        ]

    def resolve(self, exam_id: str) -> str:
        """Return the full id for an id, a unique beginning of one, or "latest".

        Raises:
            StoreError: MT135, when there is none or more than one; names the nearest.
        """
        if exam_id == LATEST:
            newest = self.list()[:1]
            if not newest:
                raise self._unknown("the store holds no examination", "begin with: microtome examine")
            return newest[0].id
        with self._database.reading() as connection:
            known = list(
                connection.execute(sa.select(examinations.c.id).order_by(examinations.c.id)).scalars()
            )
        if exam_id in known:
            return exam_id
        matches = [name for name in known if exam_id and name.startswith(exam_id)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            shown = ", ".join(matches[:4]) + (" ..." if len(matches) > 4 else "")
            raise self._unknown(
                f"{len(matches)} examinations begin with '{exam_id}'", f"give more of it: {shown}"
            )
        fix = nearest(exam_id, known) or "microtome list shows them"
        raise self._unknown(f"there is no examination '{exam_id}'", fix)

    def load(self, exam_id: str) -> Examination:
        """Load a whole examination by its id, a unique beginning of it, or "latest".

        Raises:
            StoreError: MT135 to MT136 or MT132 to MT133, when it is not there or cannot be read.
        """
        full = self.resolve(exam_id)
        try:
            return self._load(full)
        except StoreError as error:
            if error.code != "MT136":
                raise
            return self._load(full)  # its finding may have been replaced between row and file; once is enough

    def latest(self) -> Examination:
        """Load the newest examination.

        Raises:
            StoreError: MT135, when there is none.
        """
        return self.load(LATEST)

    # --- inside --------------------------------------------------------------------------------------

    def _load(self, full: str) -> Examination:
        ours = sa.select(findings.c.instrument, findings.c.body).where(findings.c.exam_id == full)
        with self._database.reading() as connection:
            head = connection.execute(
                sa.select(examinations.c.body, examinations.c.status).where(examinations.c.id == full)
            ).one_or_none()
            rows = connection.execute(ours.order_by(findings.c.position, findings.c.instrument)).all()
        if head is None:  # deleted since it was looked up
            raise self._unknown(f"there is no examination '{full}'", "microtome list shows them")
        where = f"{self.location.text()}, examination {full}"
        try:
            body: dict[str, Any] = msgspec.json.decode(head.body.encode())
            if body.get("schema", 1) > SCHEMA_VERSION:
                said = f"it has schema {body['schema']}, this microtome reads up to {SCHEMA_VERSION}"
                raise StoreError("MT133", said, where=where, fix="upgrade microtome")
            body |= {
                "status": head.status,
                "findings": {r.instrument: msgspec.Raw(r.body.encode()) for r in rows},
            }
            exam = decode_examination(msgspec.json.encode(body))
        except (msgspec.MsgspecError, ValueError, TypeError, AttributeError, KeyError) as error:
            fix = "restore the store from a backup, or delete this examination"
            raise StoreError(
                "MT132", f"an examination cannot be read: {error}", where=where, fix=fix
            ) from error
        for name, finding in exam.findings.items():
            if finding.arrays:
                read = read_arrays(array_path(self.location.arrays, full, name), finding.arrays)
                finding.arrays.update(read)
        return exam

    def _write(self, exam: Examination, *, replace: bool) -> None:
        _checked(exam.id)
        body = _plain(exam.id, msgspec.structs.replace(exam, findings={}))
        del body["findings"], body["status"]
        row = {
            "id": exam.id,
            "created": exam.created,
            "subject": str(exam.subject.get("name", "")),
            "status": exam.status,
            "seconds": exam.seconds,
            "body": msgspec.json.encode(body).decode(),
        }
        packed = {name: self._pack(exam.id, name, finding) for name, finding in exam.findings.items()}
        for name, (_, arrays) in packed.items():
            self._write_arrays(exam.id, name, arrays)
        gone: list[str] = []
        with self._database.writing() as connection:
            connection.execute(self._database.upsert(examinations, row))
            if replace:
                ours = findings.c.exam_id == exam.id
                kept = set(connection.execute(sa.select(findings.c.instrument).where(ours)).scalars())
                gone = sorted(kept - packed.keys())
                if gone:
                    connection.execute(sa.delete(findings).where(ours, findings.c.instrument.in_(gone)))
            for position, (finding_row, _) in enumerate(packed.values()):
                place = {"position": position} if replace else self._position(connection, finding_row)
                connection.execute(self._database.upsert(findings, finding_row | place))
        for name in gone:
            array_path(self.location.arrays, exam.id, name).unlink(missing_ok=True)

    def _pack(
        self, exam_id: str, name: str, finding: Finding
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        _checked(exam_id)
        if not name:
            raise StoreError(
                "MT134", "a finding without its instrument's name cannot be stored", where=exam_id
            )
        arrays = storable(name, finding.arrays)
        _plain(f"{exam_id}, {name}", msgspec.structs.replace(finding, arrays={}))
        row = {
            "exam_id": exam_id,
            "instrument": name,
            "status": finding.status,
            "grade": finding.grade,
            "body": encode_json(msgspec.structs.replace(finding, arrays=arrays)).decode(),
        }
        return row, arrays

    def _write_arrays(self, exam_id: str, name: str, arrays: dict[str, np.ndarray]) -> None:
        if self._database.read_only:
            with self._database.writing():  # raises its own clear error
                return
        path = array_path(self.location.arrays, exam_id, name)
        try:
            write_arrays(path, arrays)
        except OSError as error:
            raise unwritable(error, str(path)) from error

    def _position(self, connection: sa.Connection, row: Mapping[str, Any]) -> dict[str, int]:
        """Give a finding answered again its old place, a new one the last."""
        ours = findings.c.exam_id == row["exam_id"]
        same = sa.select(findings.c.position).where(ours, findings.c.instrument == row["instrument"])
        place = connection.execute(same).scalar()
        if place is None:
            last = connection.execute(sa.select(sa.func.max(findings.c.position)).where(ours)).scalar()
            place = 0 if last is None else last + 1
        return {"position": place}

    def _require(self, connection: sa.Connection, exam_id: str) -> None:
        known = sa.select(examinations.c.id)
        if connection.execute(known.where(examinations.c.id == exam_id)).scalar() is None:
            fix = nearest(exam_id, connection.execute(known).scalars()) or "begin(exam) comes first"
            raise self._unknown(f"there is no examination '{exam_id}'", fix)

    def _unknown(self, what: str, fix: str) -> StoreError:
        return StoreError("MT135", what, where=self.location.text(), fix=fix)


def _checked(exam_id: str) -> str:
    """Refuse an id that could leave the store's folder."""
    if not _ID.fullmatch(exam_id):
        fix = "letters, digits, '.', '_' and '-', at most 128, the first a letter or digit"
        raise StoreError("MT134", f"{exam_id!r} cannot be an examination's id", fix=fix)
    return exam_id


def _plain(where: str, value: Any) -> dict[str, Any]:
    """Bring a struct to plain values as its JSON will have them; refuse what JSON would lose in silence.

    A NaN or an infinity becomes null in JSON and an array outside ``arrays`` only its shape: both would come
    back as something else than was measured.

    Raises:
        StoreError: MT134, naming the field.
    """

    def hook(item: Any) -> Any:
        if isinstance(item, np.generic):
            return item.item()
        if isinstance(item, str):  # of another class, such as torch.__version__
            return str(item)
        if isinstance(item, np.ndarray):
            return _ARRAY  # found, named and refused below
        raise TypeError(f"a {type(item).__name__} cannot be stored")

    try:
        plain: dict[str, Any] = msgspec.to_builtins(value, enc_hook=hook, str_keys=True)
        for path, leaf in _leaves(plain, ""):
            if isinstance(leaf, float) and not math.isfinite(leaf):
                raise StoreError(
                    "MT134", f"{path} is {leaf}", where=where, fix="leave it out, or give None or text"
                )
            if leaf == _ARRAY:
                raise StoreError(
                    "MT134", f"{path} is an array", where=where, fix="put it into the finding's arrays"
                )
    except TypeError as error:
        raise StoreError("MT134", str(error), where=where, fix="give plain values") from error
    return plain


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}[{index}]")
    else:
        yield path, value
