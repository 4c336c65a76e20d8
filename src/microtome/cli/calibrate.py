"""``microtome calibrate``: how well does each instrument read?"""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from microtome.cli.output import align, say, show, show_json, split_list

FIELDS = ("instrument", "specimen", "quantity", "reading", "truth", "error", "tolerance", "passed")


def calibrate(
    *,
    only: Annotated[list[str] | None, Parameter(help="Instruments to read, by name or pattern.")] = None,
    json: Annotated[bool, Parameter(help="Print JSON.")] = False,
) -> int:
    """Let every instrument read networks whose answer is known: reading, truth, error.

    Exit status 1 if a reading is further from the truth than its tolerance.
    """
    from microtome.calibration import calibrate as take
    from microtome.cli.progress import for_terminal
    from microtome.finding import format_number
    from microtome.registry import select

    wanted = split_list(only)
    names = select(wanted, ()) if wanted else ()
    with for_terminal() as watcher:
        rows: list[Any] = take(names, watcher=watcher)
    bad = [row for row in rows if not row.passed]
    if json:
        values = [{field: getattr(row, field) for field in FIELDS} for row in rows]
        show_json({"readings": values, "passed": not bad})
    else:
        lines = [
            (
                row.instrument,
                row.specimen,
                row.quantity,
                *(format_number(getattr(row, field)) for field in ("reading", "truth", "error", "tolerance")),
                "ok" if row.passed else "OUTSIDE",
            )
            for row in rows
        ]
        show(align(lines, header=(*FIELDS[:-1], "verdict")))
    count = len({row.instrument for row in rows})
    say(f"{len(rows)} readings of {count} instruments, {len(bad)} outside tolerance")
    return 1 if bad else 0
