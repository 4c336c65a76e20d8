"""Verbs on stored examinations: ``list``, ``show``, ``report``, ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from microtome.cli.examine import Json, Store, writable_report
from microtome.cli.output import align, say, show_json, split_list
from microtome.cli.output import show as put

Run = Annotated[str, Parameter(help="A run: its id, the beginning of one, or 'latest'.")]


def list_runs(
    what: Annotated[Literal["runs", "instruments"], Parameter(help="Stored runs, or instruments.")] = "runs",
    /,
    *,
    store: Store = None,
    json: Json = False,
) -> int:
    """List the stored runs, newest first, or the instruments there are."""
    if what == "instruments":
        from microtome.registry import instrument_names

        names = list(instrument_names())
        if json:
            show_json(names)
        else:
            put("\n".join(names))
        return 0
    import msgspec

    from microtome.store import open_store

    with open_store(store, create=False) as opened:
        entries = opened.list()
    if json:
        show_json([msgspec.structs.asdict(entry) for entry in entries])
        return 0
    if not entries:
        say("no examination is stored yet; begin with: microtome examine")
        return 0
    rows = [
        (
            e.id,
            e.created[:19].replace("T", " "),
            e.status,
            f"{e.measured}/{e.findings}",
            str(e.alarms),
            e.subject,
        )
        for e in entries
    ]
    put(align(rows, header=("run", "created (UTC)", "status", "measured", "alarms", "subject")))
    return 0


def show(run: Run = "latest", /, *, store: Store = None, json: Json = False) -> int:
    """Print the table of a stored run."""
    from microtome.finding import encode_json
    from microtome.store import open_store

    with open_store(store, create=False) as opened:
        exam = opened.load(run)
    if json:
        show_json(encode_json(exam))
    else:
        put(exam.table())
    return 0


def report(
    run: Run = "latest",
    /,
    *,
    out: Annotated[str | None, Parameter(help="File to write. Default: RUN.html here.")] = None,
    store: Store = None,
    json: Json = False,
) -> int:
    """Write the report of a stored run: one self-contained HTML file."""
    from microtome.store import open_store

    writable_report(out)
    with open_store(store, create=False) as opened:
        exam = opened.load(run)
    path = exam.report(str(Path(out).expanduser()) if out else f"{exam.id}.html")
    if json:
        show_json({"run": exam.id, "report": path})
    else:
        put(path)
    return 0


def compare(
    a: Annotated[str, Parameter(help="A run, or several by comma: a sample of one way of training.")],
    b: Annotated[str, Parameter(help="A run, or several by comma.")],
    /,
    *,
    paired: Annotated[
        bool, Parameter(help="Runs of both sides are pairs, in order: the same seeds.")
    ] = False,
    store: Store = None,
    json: Json = False,
) -> int:
    """Set two runs, or two groups of runs, side by side: which differences are larger than noise.

    Two single runs are compared over the examples they share. With several runs on each side (A1,A2,A3 B1,B2,B3) the
    variation between runs is the noise.
    """
    from microtome.comparison import compare as set_side_by_side
    from microtome.group_comparison import compare_groups
    from microtome.store import open_store

    with open_store(store, create=False) as opened:
        first, second = ([opened.load(run) for run in split_list([side])] for side in (a, b))
        if len(first) == len(second) == 1 and not paired:
            comparison = set_side_by_side(first[0], second[0])
        else:
            comparison = compare_groups(first, second, paired=paired)
    if json:
        show_json(comparison.as_dict())
    else:
        put(comparison.text())
    return 0
