"""The atlas: for every paper what runs here, the claim, our measurement and the verdict, from what is really there.

Nothing is written by hand: papers come from the bibliography, leaves from the registry, claims from the studies and
measurements from the records of their full runs. ``microtome atlas`` writes it as pages that need no network.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from microtome.errors import UsageError
from microtome.papers import Standing, states
from microtome.registry import papers_of_instruments
from microtome.study import Study, components, records, study, study_names


@dataclass(frozen=True)
class Entry:
    """One paper's page.

    Attributes:
        standing: the paper, its state, leaves and verdict.
        study: its study, when there is one.
        module: where the study lies.
        record: its recorded full run.
        relates: other papers -> how they stand to this one, said by either's study; with the other's verdict.
    """

    standing: Standing
    study: Study | None = None
    module: str = ""
    record: Mapping[str, Any] | None = None
    relates: Mapping[str, tuple[str, str | None]] = field(default_factory=dict)


def entries(skipped: Callable[[str], None] = lambda said: None) -> list[Entry]:
    """Every paper, in the order of the bibliography."""
    kept = records()
    verdicts = {slug: each["verdict"] for slug, each in kept.items()}
    standings = states(papers_of_instruments(skipped), verdicts, components=components())
    names = study_names()
    studies: dict[str, Study] = {}
    for slug in names:
        try:
            studies[slug] = study(slug)
        except UsageError as error:  # a broken plug-in is listed, never fatal
            skipped(str(error))
    related: dict[str, dict[str, tuple[str, str | None]]] = {}
    for slug, each in studies.items():
        for other, how in each.relates.items():
            related.setdefault(slug, {})[other] = (how, verdicts.get(other))
            related.setdefault(other, {}).setdefault(slug, (how, verdicts.get(slug)))
    return [
        Entry(
            standing=one,
            study=studies.get(one.paper.slug),
            module=names.get(one.paper.slug, ""),
            record=kept.get(one.paper.slug),
            relates=related.get(one.paper.slug, {}),
        )
        for one in standings
    ]


def write(folder: str | Path, skipped: Callable[[str], None] = lambda said: None) -> Path:
    """Write the atlas as pages; returns the page to begin with.

    Raises:
        UsageError: MT151 when the folder holds something else, or cannot be written.
    """
    from microtome.report.atlas import pages

    target = Path(folder).expanduser()
    if target.exists() and (
        not target.is_dir() or (any(target.iterdir()) and not (target / "atlas.json").exists())
    ):
        raise UsageError(
            "MT151", "the folder holds something that is no atlas", where=str(target), fix="give another"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            for name, content in pages(entries(skipped)):
                (made / name).parent.mkdir(exist_ok=True)
                (made / name).write_text(content, encoding="utf-8")
            shutil.rmtree(target, ignore_errors=True)
            os.chmod(made, 0o755)
            made.replace(target)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
    except OSError as error:
        raise UsageError(
            "MT151",
            f"the atlas cannot be written: {(error.strerror or str(error)).lower()}",
            where=str(target),
        ) from error
    return target / "index.html"


__all__ = ["Entry", "entries", "write"]
