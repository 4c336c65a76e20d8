"""``microtome atlas``: every paper's claim, measurement and verdict, as pages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from microtome.cli.output import say, show, show_json


def atlas(
    *,
    out: Annotated[
        str | None, Parameter(help="Folder to write the pages to. Default: the per-user cache.")
    ] = None,
    open: Annotated[bool, Parameter(help="Open it in the browser.")] = False,
    json: Annotated[bool, Parameter(help="Print the papers as JSON instead, and write nothing.")] = False,
) -> int:
    """Write the atlas of papers: claim, what runs here, measurement, verdict, figure, conditions."""
    from microtome.atlas import entries, write

    if json:
        from microtome.report.atlas import summary

        show_json([summary(entry) for entry in entries(say)])
        return 0
    if out is None:
        from microtome.reference import cache_folder

        out = str(cache_folder() / "atlas")
    page = write(out, say)
    if open:
        import webbrowser

        if not webbrowser.open(page.resolve().as_uri()):
            say("no browser could be opened; open the page below")
    show(str(Path(page)))
    return 0
