"""``microtome calibrate``: how well does each instrument read?"""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from microtome.cli.output import align, say, show, show_json, split_list

HEADER = ("instrument", "specimen", "quantity", "reading", "truth", "error", "tolerance", "verdict")


def calibrate(
    *,
    only: Annotated[list[str] | None, Parameter(help="Instruments to read, by name or pattern.")] = None,
    json: Annotated[bool, Parameter(help="Print JSON.")] = False,
) -> int:
    """Let every instrument read networks whose answer is known: reading, truth, error.

    Exit status 1 if a reading is further from the truth than its tolerance.
    """
    import msgspec

    from microtome.calibration import calibrate as take
    from microtome.cli.progress import for_terminal
    from microtome.finding import format_number
    from microtome.registry import select

    wanted = split_list(only)
    names = select(wanted, ()) if wanted else ()
    with for_terminal() as watcher:
        rows = take(names, watcher=watcher)
    bad = [row for row in rows if not row.passed]
    if json:
        show_json({"readings": [msgspec.structs.asdict(row) for row in rows], "passed": not bad})
    else:

        def number(value: float | None) -> str:
            return "-" if value is None else format_number(value)

        lines = [
            (
                row.instrument,
                row.specimen,
                row.quantity,
                *map(number, (row.reading, row.truth, row.error, row.tolerance)),
                ("ok" if row.passed else "OUTSIDE") + (f"  {row.note}" if row.note else ""),
            )
            for row in rows
        ]
        show(align(lines, header=HEADER))
    count = len({row.instrument for row in rows})
    say(f"{len(rows)} readings of {count} instruments, {len(bad)} outside tolerance")
    return 1 if bad else 0
