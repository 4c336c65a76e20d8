"""``microtome papers``: the bibliography, and how far each paper has come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
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
    from microtome.registry import papers_of_instruments
    from microtome.study import components, recorded

    known_states = get_args(State)
    for option, value, known in (("room", room, ROOMS), ("state", state, known_states)):
        if value is not None and value not in known:
            raise UsageError(
                "MT115",
                f"no {option} is called '{value}'",
                where=f"--{option}",
                fix=nearest(value, known) or f"one of {', '.join(known)}",
            )
    standings = states(papers_of_instruments(say), recorded(), components=components())
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
