"""What the papers are, and how far each has come.

``papers.jsonl`` holds facts about the papers and nothing else, one record a line. How far a paper has come
is never written down: :func:`states` derives it from the leaves that are registered, the verdicts that
studies have recorded and the leaves that read their specimens right.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Annotated, Literal, get_args

import msgspec

from microtome.errors import MicrotomeError, UsageError, nearest

Kind = Literal[
    "application",
    "attack",
    "benchmark",
    "compression",
    "dataset",
    "defense",
    "finding",
    "measure",
    "method",
    "model",
    "survey",
    "theory",
    "tool",
    "training-rule",
    "tutorial",
    "verification",
]
Room = Literal[
    "explain",
    "represent",
    "dynamics",
    "theory",
    "reliability",
    "security",
    "compress",
    "graphs",
    "architect",
    "learn",
    "context",
    "apply",
]
State = Literal["works", "instrument", "study", "planned"]

ROOMS: tuple[Room, ...] = get_args(Room)


class Paper(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One paper, by facts alone."""

    id: Annotated[str, msgspec.Meta(pattern=r"^S\d{3}$")]
    slug: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    """The name leaves and studies know it by."""
    name: Annotated[str, msgspec.Meta(min_length=1)]
    """The short name of what the paper proposes or finds."""
    title: Annotated[str, msgspec.Meta(min_length=1)]
    kind: Kind
    room: Room
    priority: Annotated[int, msgspec.Meta(ge=1, le=3)]
    """3 is wanted first, 1 last."""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How far one paper has come.

    ``works``: leaves rest on it, all of them calibrated where that is known, and its study has recorded a
    verdict. ``instrument``: leaves rest on it, but one of the other two is missing. ``study``: a verdict is
    recorded, yet no registered leaf names the paper. ``planned``: nothing is registered.
    """

    paper: Paper
    state: State
    leaves: tuple[str, ...] = ()
    uncalibrated: tuple[str, ...] = ()
    """Those of the leaves that have not read their specimens right."""
    verdict: str | None = None


@cache
def papers() -> tuple[Paper, ...]:
    """Every paper, in the order of their ids.

    Raises:
        MicrotomeError: if a record does not parse, or an id or a slug occurs twice.
    """
    source = files("microtome.papers").joinpath("papers.jsonl")
    return parse(source.read_bytes(), where=str(source))


def parse(lines: bytes, *, where: str) -> tuple[Paper, ...]:
    """Read records, one JSON object a line, and hold them to the schema; ``where`` names the file in errors.

    Raises:
        MicrotomeError: as :func:`papers`.
    """
    decoder = msgspec.json.Decoder(Paper)
    records: list[Paper] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines.splitlines(), start=1):
        try:
            record = decoder.decode(line)
        except msgspec.DecodeError as problem:
            raise MicrotomeError("MT160", str(problem), where=f"{where}, line {number}") from problem
        for key in (record.id, record.slug):
            if key in seen:
                raise MicrotomeError(
                    "MT161",
                    f"'{key}' names two papers, lines {seen[key]} and {number}",
                    where=where,
                    fix="give each paper an id and a slug of its own",
                )
            seen[key] = number
        records.append(record)
    return tuple(sorted(records, key=lambda record: record.id))


def paper(slug: str) -> Paper:
    """Look a paper up by its slug.

    Raises:
        UsageError: if no paper has this slug; it names the nearest ones.
    """
    by_slug = _by_slug()
    if slug not in by_slug:
        raise UsageError(
            "MT162",
            f"no paper is called '{slug}'",
            fix=nearest(slug, by_slug) or "`microtome papers` lists them all",
        )
    return by_slug[slug]


@cache
def _by_slug() -> Mapping[str, Paper]:
    return {record.slug: record for record in papers()}


def states(
    leaves: Mapping[str, Sequence[str]],
    studies: Mapping[str, str],
    calibrated: Collection[str] | None = None,
    components: Mapping[str, Sequence[str]] | None = None,
) -> tuple[Standing, ...]:
    """Derive how far every paper has come from what is really there.

    Args:
        leaves: for each registered leaf, the slugs of the papers it rests on.
        studies: for each paper whose study has really been run, the verdict it recorded.
        calibrated: the leaves that read their specimens right; None if no calibration has been recorded,
            and then it decides nothing.
        components: for each paper whose study names them, the layers, rules and measures it rests on. They are
            leaves as instruments are, but none that read a specimen: their tests hold them to what is known.

    Raises:
        UsageError: if a leaf or a study names a paper that the bibliography does not have.
    """
    resting: dict[str, list[str]] = {}
    for leaf, slugs in sorted(leaves.items()):
        for slug in dict.fromkeys(slugs):
            resting.setdefault(_known(slug, f"leaf {leaf}"), []).append(leaf)
    verdicts = {_known(slug, "recorded studies"): verdict for slug, verdict in studies.items()}
    return tuple(
        _standing(
            record,
            resting.get(record.slug, ()),
            verdicts.get(record.slug),
            calibrated,
            (components or {}).get(record.slug, ()),
        )
        for record in papers()
    )


def _known(slug: str, where: str) -> str:
    try:
        return paper(slug).slug
    except UsageError as problem:
        raise UsageError(problem.code, problem.what, where=where, fix=problem.fix) from None


def _standing(
    record: Paper,
    leaves: Sequence[str],
    verdict: str | None,
    calibrated: Collection[str] | None,
    components: Sequence[str],
) -> Standing:
    uncalibrated = () if calibrated is None else tuple(leaf for leaf in leaves if leaf not in calibrated)
    state: State
    if leaves or components:
        state = "works" if verdict is not None and not uncalibrated else "instrument"
    else:
        state = "planned" if verdict is None else "study"
    return Standing(
        paper=record, state=state, leaves=(*leaves, *components), uncalibrated=uncalibrated, verdict=verdict
    )
