"""Looking through a store: pages of examinations, tags, what is running, and reading past what is damaged."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import sqlalchemy as sa

from microtome.errors import StoreError
from microtome.finding import SCHEMA_VERSION, Examination, Finding, decode_examination, decode_finding
from microtome.progress import Progress, read_progress
from microtome.store.arrays import array_path, read_arrays
from microtome.store.database import Database, examinations, findings, tags
from microtome.store.location import Location

MOST_TAGS = 32
_TAG = re.compile(r"[\w][\w .:+/-]{0,63}")


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which examinations; an empty field leaves none out."""

    words: str = ""
    """All of these are in the subject's name, the id or a tag."""
    subject: str = ""
    status: str = ""
    grade: Literal["", "alarm", "watch"] = ""
    """At least one finding is graded so."""
    tag: str = ""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One examination in a list."""

    id: str
    created: str
    subject: str
    status: str
    seconds: float
    findings: int
    measured: int
    failed: int
    alarms: int
    watches: int
    goods: int
    tags: tuple[str, ...]


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What of an examination can be read; values of arrays are not."""

    exam: Examination
    damaged: dict[str, str]
    """Instrument -> why its finding cannot be read."""


class _Described(msgspec.Struct):
    """As much of an examination's record as says what was examined."""

    subject: dict[str, Any] = {}


class Browser:
    """The part of a store that is for looking around."""

    location: Location
    _database: Database

    def page(self, chosen: Filter, offset: int = 0, limit: int = 50) -> tuple[list[Line], int]:
        """Examinations that fit, newest first, from ``offset`` on, and how many there are."""
        fits = self._fits(chosen)
        some = (
            sa.select(*(examinations.c[n] for n in ("id", "created", "subject", "status", "seconds")))
            .where(*fits)
            .order_by(examinations.c.created.desc(), examinations.c.id.desc())
            .offset(offset)
            .limit(limit)
        )
        with self._database.reading() as connection:
            total = connection.execute(
                sa.select(sa.func.count()).select_from(examinations).where(*fits)
            ).scalar()
            rows = connection.execute(some).all()
            ids = [row.id for row in rows]
            counts = self._counts(connection, ids)
            known = self._tags(connection, ids)
        lines = [
            Line(**row._mapping, **counts.get(row.id, _NOTHING), tags=tuple(known.get(row.id, ())))
            for row in rows
        ]
        return lines, int(total or 0)

    def lines(self, ids: Sequence[str]) -> list[Line]:
        """Examinations by id, in this order; unknown ids are left out."""
        columns = [examinations.c[n] for n in ("id", "created", "subject", "status", "seconds")]
        with self._database.reading() as connection:
            found = connection.execute(sa.select(*columns).where(examinations.c.id.in_(ids))).all()
            counts, known = self._counts(connection, ids), self._tags(connection, ids)
        by_id = {
            row.id: Line(**row._mapping, **counts.get(row.id, _NOTHING), tags=tuple(known.get(row.id, ())))
            for row in found
        }
        return [by_id[each] for each in ids if each in by_id]

    def subjects(self, limit: int = 200) -> list[tuple[str, int]]:
        """Names of subjects and how often each was examined, the last examined first."""
        query = (
            sa.select(examinations.c.subject, sa.func.count())
            .group_by(examinations.c.subject)
            .order_by(sa.func.max(examinations.c.created).desc())
            .limit(limit)
        )
        with self._database.reading() as connection:
            return [(name, count) for name, count in connection.execute(query)]

    def running(self, limit: int = 20) -> list[str]:
        """Ids of the examinations that say they run, newest first; one of them may have been killed."""
        query = sa.select(examinations.c.id).where(examinations.c.status == "running")
        with self._database.reading() as connection:
            return list(
                connection.execute(query.order_by(examinations.c.created.desc()).limit(limit)).scalars()
            )

    def progress(self, exam_id: str) -> Progress | None:
        """How far a running examination is, where it runs on this machine."""
        return read_progress(self.location.runs / exam_id)

    def described(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """What was examined, by id, without any finding; one that cannot be read is left out."""
        query = sa.select(examinations.c.id, examinations.c.body).where(examinations.c.id.in_(ids))
        with self._database.reading() as connection:
            rows = connection.execute(query).all() if ids else []
        found = {}
        for exam_id, body in rows:
            try:
                found[exam_id] = msgspec.json.decode(body.encode(), type=_Described).subject
            except (msgspec.MsgspecError, ValueError, RecursionError):
                continue
        return found

    # --- tags ----------------------------------------------------------------------------------------

    def all_tags(self, limit: int = 200) -> list[tuple[str, int]]:
        """Tags and how many examinations carry each."""
        if not self._database.has_tags:
            return []
        query = sa.select(tags.c.tag, sa.func.count()).group_by(tags.c.tag).order_by(tags.c.tag).limit(limit)
        with self._database.reading() as connection:
            return [(name, count) for name, count in connection.execute(query)]

    def tag(self, exam_id: str, name: str) -> None:
        """Give an examination a tag; one it has stays.

        Raises:
            StoreError: MT171 for what cannot be a tag, or more than 32; MT135 for no such examination.
        """
        name = name.strip()
        if not _TAG.fullmatch(name):
            fix = "letters, digits, spaces and .:+/-_, at most 64, the first a letter or digit"
            raise StoreError("MT171", f"{name[:80]!r} cannot be a tag", fix=fix)
        with self._database.writing() as connection:
            self._require(connection, exam_id)
            ours = set(connection.execute(sa.select(tags.c.tag).where(tags.c.exam_id == exam_id)).scalars())
            if name not in ours:
                if len(ours) >= MOST_TAGS:
                    raise StoreError("MT171", f"{exam_id} has {MOST_TAGS} tags", fix="remove one first")
                connection.execute(sa.insert(tags).values(exam_id=exam_id, tag=name))

    def untag(self, exam_id: str, name: str) -> None:
        """Take a tag away; nothing happens where there is none."""
        with self._database.writing() as connection:
            connection.execute(sa.delete(tags).where(tags.c.exam_id == exam_id, tags.c.tag == name))

    # --- reading past damage -------------------------------------------------------------------------

    def read(self, exam_id: str) -> Reading:
        """Read an examination without the values of its arrays; a finding that is damaged does not stop the rest.

        Raises:
            StoreError: MT135 for no such examination, MT132 or MT133 when its own record cannot be read.
        """
        ours = sa.select(findings.c.instrument, findings.c.body).where(findings.c.exam_id == exam_id)
        with self._database.reading() as connection:
            head = connection.execute(
                sa.select(examinations.c.body, examinations.c.status).where(examinations.c.id == exam_id)
            ).one_or_none()
            rows = connection.execute(ours.order_by(findings.c.position, findings.c.instrument)).all()
        if head is None:
            raise StoreError("MT135", f"there is no examination '{exam_id[:80]}'", where=self.location.text())
        try:
            body: dict[str, Any] = msgspec.json.decode(head.body.encode())
            if body.get("schema", 1) > SCHEMA_VERSION:
                said = f"it has schema {body['schema']}, this microtome reads up to {SCHEMA_VERSION}"
                raise StoreError("MT133", said, where=exam_id, fix="upgrade microtome")
            exam = decode_examination(msgspec.json.encode(body | {"status": head.status, "findings": {}}))
        except (msgspec.MsgspecError, ValueError, TypeError, AttributeError) as error:
            where = f"{self.location.text()}, examination {exam_id}"
            raise StoreError("MT132", f"an examination cannot be read: {error}", where=where) from error
        damaged: dict[str, str] = {}
        for name, text in rows:
            try:
                exam.findings[name] = decode_finding(text.encode())
            except (msgspec.MsgspecError, ValueError, TypeError, KeyError) as error:
                damaged[name] = f"its record in the store is damaged: {error}"
        return Reading(exam=exam, damaged=damaged)

    def arrays_of(self, exam_id: str, finding: Finding) -> dict[str, np.ndarray]:
        """Values of a finding's arrays.

        Raises:
            StoreError: MT136, when the file is absent, damaged or another's.
        """
        if not finding.arrays:
            return {}
        return read_arrays(array_path(self.location.arrays, exam_id, finding.instrument), finding.arrays)

    # --- inside --------------------------------------------------------------------------------------

    def _require(self, connection: sa.Connection, exam_id: str) -> None:
        raise NotImplementedError

    def _fits(self, chosen: Filter) -> list[Any]:
        fits: list[Any] = []
        if chosen.subject:
            fits.append(examinations.c.subject == chosen.subject)
        if chosen.status:
            fits.append(examinations.c.status == chosen.status)
        if chosen.grade:
            graded = sa.exists().where(
                findings.c.exam_id == examinations.c.id, findings.c.grade == chosen.grade
            )
            fits.append(graded)
        if chosen.tag:
            fits.append(self._tagged(tags.c.tag == chosen.tag))
        for word in chosen.words.lower().split()[:8]:
            columns = [examinations.c.subject, examinations.c.id]
            found = [sa.func.lower(c).contains(word, autoescape=True) for c in columns]
            found.append(self._tagged(sa.func.lower(tags.c.tag).contains(word, autoescape=True)))
            fits.append(sa.or_(*found))
        return fits

    def _tagged(self, which: Any) -> Any:
        if not self._database.has_tags:
            return sa.false()
        return sa.exists().where(tags.c.exam_id == examinations.c.id, which)

    def _counts(self, connection: sa.Connection, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        def count(column: sa.ColumnElement[Any], value: str) -> Any:
            return sa.func.sum(sa.case((column == value, 1), else_=0))

        f = findings.c
        query = (
            sa.select(
                f.exam_id,
                sa.func.count().label("findings"),
                count(f.status, "measured").label("measured"),
                count(f.status, "failed").label("failed"),
                count(f.grade, "alarm").label("alarms"),
                count(f.grade, "watch").label("watches"),
                count(f.grade, "good").label("goods"),
            )
            .where(f.exam_id.in_(ids))
            .group_by(f.exam_id)
        )
        found = connection.execute(query).mappings() if ids else ()
        return {
            row["exam_id"]: {key: int(value) for key, value in row.items() if key != "exam_id"}
            for row in found
        }

    def _tags(self, connection: sa.Connection, ids: Sequence[str]) -> dict[str, list[str]]:
        known: dict[str, list[str]] = {}
        if ids and self._database.has_tags:
            query = sa.select(tags.c.exam_id, tags.c.tag).where(tags.c.exam_id.in_(ids))
            for exam_id, name in connection.execute(query.order_by(tags.c.tag)):
                known.setdefault(exam_id, []).append(name)
        return known


_NOTHING: dict[str, Any] = {"findings": 0, "measured": 0, "failed": 0, "alarms": 0, "watches": 0, "goods": 0}
