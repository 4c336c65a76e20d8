"""Leaves are found by walking the tree; there are no hand-kept lists. Imports no torch by itself."""

from __future__ import annotations

import ast
import fnmatch
import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microtome.errors import UsageError, nearest

if TYPE_CHECKING:
    from microtome.instrument import Instrument

ROOMS = (
    "reliability", "represent", "dynamics", "explain", "security", "compress", "architect", "theory", "graphs",
)  # fmt: skip
"""Order of reading."""
_HERE = Path(__file__).parent


@cache
def instrument_names() -> tuple[str, ...]:
    """All instruments, ours and those of plug-ins, as ``room/method``, in reading order."""
    found = [
        f"{path.parent.name}/{path.stem}"
        for path in sorted((_HERE / "instruments").glob("*/*.py"))
        if not path.stem.startswith("_")
    ]
    found += [point.name for point in _points("instruments")]

    def order(name: str) -> tuple[int, str]:
        room = name.split("/", 1)[0]
        return (ROOMS.index(room) if room in ROOMS else len(ROOMS), name)

    return tuple(sorted(dict.fromkeys(found), key=order))


def instrument(name: str) -> type[Instrument]:
    """Import one instrument by ``room/method`` or by the method alone.

    Raises:
        UsageError: MT126 for an unknown name, with the nearest; MT127 when a plug-in is broken.
    """
    return _load(_resolve(name))


@cache
def _load(full: str) -> type[Instrument]:
    from microtome.instrument import Instrument

    room, method = full.split("/", 1)
    if (_HERE / "instruments" / room / f"{method}.py").exists():
        module = importlib.import_module(f"microtome.instruments.{room}.{method}")
        kinds = [
            value
            for value in vars(module).values()
            if isinstance(value, type)
            and issubclass(value, Instrument)
            and value.__module__ == module.__name__
            and not value.__name__.startswith("_")
        ]
        if len(kinds) != 1:
            raise UsageError(
                "MT127", f"{module.__name__} must define exactly one instrument, it defines {len(kinds)}"
            )
        return kinds[0]
    point = next(p for p in _points("instruments") if p.name == full)
    try:
        return point.load()
    except Exception as error:
        raise UsageError(
            "MT127", f"the plug-in instrument '{full}' is broken: {error}", where=point.value
        ) from error


def _resolve(name: str) -> str:
    names = instrument_names()
    if name in names:
        return name
    matches = [n for n in names if n.rsplit("/", 1)[-1] == name]
    if len(matches) == 1:
        return matches[0]
    raise UsageError(
        "MT126", f"no instrument is called '{name}'", fix=nearest(name, names) or "microtome list shows all"
    )


def select(only: Sequence[str] = (), skip: Sequence[str] = ()) -> tuple[str, ...]:
    """Names chosen by glob patterns (``reliability/*``), rooms or methods; in reading order.

    Raises:
        UsageError: MT126 for a pattern that matches nothing.
    """
    names = instrument_names()

    def expand(patterns: Sequence[str]) -> set[str]:
        chosen: set[str] = set()
        for pattern in patterns:
            if pattern in ROOMS:
                pattern += "/*"
            matches = fnmatch.filter(names, pattern) or fnmatch.filter(names, f"*/{pattern}")
            if not matches:
                matches = [_resolve(pattern)]
            chosen.update(matches)
        return chosen

    kept = expand(only) if only else set(names)
    dropped = expand(skip)
    return tuple(n for n in names if n in kept and n not in dropped)


def papers_of_instruments(skipped: Callable[[str], None] = lambda said: None) -> Mapping[str, Sequence[str]]:
    """For each registered instrument, the papers it rests on; one that cannot be loaded is told to ``skipped``."""
    found: dict[str, Sequence[str]] = {}
    for name in instrument_names():
        slugs = _written_papers(name)
        if slugs is None:
            try:
                slugs = instrument(name).papers
            except Exception as error:
                skipped(f"skipped {name}: {type(error).__name__}: {error}")
                continue
        found[name] = slugs
    return found


def _written_papers(name: str) -> tuple[str, ...] | None:
    """Read ``papers = (...)`` off one of our own leaves without importing it, which would import torch."""
    try:
        tree = ast.parse((_HERE / "instruments" / f"{name}.py").read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return None
    for kind in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for line in kind.body:
            if isinstance(line, ast.Assign):
                target: ast.expr = line.targets[0]
            elif isinstance(line, ast.AnnAssign):
                target = line.target
            else:
                continue
            if isinstance(target, ast.Name) and target.id == "papers" and line.value is not None:
                try:
                    return tuple(ast.literal_eval(line.value))
                except ValueError:
                    return None  # computed: the import will tell
    return ()


def specimen_modules() -> tuple[Any, ...]:
    """Modules of :mod:`microtome.specimens` and those of plug-ins."""
    modules: list[Any] = [
        importlib.import_module(f"microtome.specimens.{path.stem}")
        for path in sorted((_HERE / "specimens").glob("*.py"))
        if not path.stem.startswith("_")
    ]
    for point in _points("specimens"):
        try:
            modules.append(point.load())
        except Exception:  # noqa: S112 - a broken plug-in is listed by plugins(), never fatal
            continue
    return tuple(modules)


def _points(group: str) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=f"microtome.{group}"))


def plugins() -> list[tuple[str, str, str | None]]:
    """(name, group, error or None) of every installed plug-in."""
    found: list[tuple[str, str, str | None]] = []
    for group in ("instruments", "specimens", "studies", "domains"):
        for point in _points(group):
            try:
                point.load()
                found.append((point.name, group, None))
            except Exception as error:
                found.append((point.name, group, f"{type(error).__name__}: {error}"))
    return found
