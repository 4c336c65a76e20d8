"""``microtome papers``: the bibliography, and how far each paper has come."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Annotated, get_args

from cyclopts import Parameter

from microtome.cli.output import align, say, show, show_json
from microtome.errors import UsageError, nearest


def papers(
    *,
    room: Annotated[str | None, Parameter(help="Only papers of this room.")] = None,
    state: Annotated[
        str | None, Parameter(help="Only papers in this state: works, instrument, study, planned.")
    ] = None,
    json: Annotated[bool, Parameter(help="Print JSON.")] = False,
) -> int:
    """List the papers the library rests on, and what of each really runs here."""
    import msgspec

    from microtome.papers import ROOMS, State, states
    from microtome.study import recorded

    known_states = get_args(State)
    for option, value, known in (("room", room, ROOMS), ("state", state, known_states)):
        if value is not None and value not in known:
            raise UsageError(
                "MT115",
                f"no {option} is called '{value}'",
                where=f"--{option}",
                fix=nearest(value, known) or f"one of {', '.join(known)}",
            )
    standings = states(_leaves(), recorded())
    chosen = [
        s for s in standings if (room is None or s.paper.room == room) and (state is None or s.state == state)
    ]
    if json:
        show_json([msgspec.to_builtins(standing) for standing in chosen])
    else:
        rows = [
            (s.paper.id, s.state, s.paper.room, s.paper.slug, s.paper.title + _rests(s.leaves))
            for s in chosen
        ]
        show(align(rows, header=("id", "state", "room", "slug", "title")))
    counts = Counter(s.state for s in chosen)
    say(
        f"{len(chosen)} papers: "
        + ", ".join(f"{counts[name]} {name}" for name in known_states if counts[name])
    )
    return 0


def _rests(leaves: Sequence[str]) -> str:
    return f"  [{', '.join(leaves)}]" if leaves else ""


def _leaves() -> Mapping[str, Sequence[str]]:
    """For each registered instrument, the papers it rests on; one that cannot be loaded rests on none."""
    from microtome.registry import instrument, instrument_names

    found: dict[str, Sequence[str]] = {}
    for name in instrument_names():
        slugs = _written(name)
        if slugs is None:
            try:
                slugs = instrument(name).papers
            except Exception as error:
                say(f"skipped {name}: {type(error).__name__}: {error}")
                continue
        found[name] = slugs
    return found


def _written(name: str) -> tuple[str, ...] | None:
    """Read ``papers = (...)`` off one of our own leaves without importing it, which would import torch."""
    room, _, method = name.partition("/")
    file = files("microtome").joinpath("instruments", room, f"{method}.py")
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
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
