"""``microtome view``: the store in the browser."""

from __future__ import annotations

import os
import sys
from typing import Annotated

from cyclopts import Parameter

from microtome.cli.examine import Store
from microtome.cli.output import say, show

PORT = 7345


def view(
    *,
    store: Store = None,
    port: Annotated[int, Parameter(help="Port; 0 takes a free one.")] = PORT,
    host: Annotated[
        str, Parameter(help="Address to listen at; any but loopback asks for --token.")
    ] = "127.0.0.1",
    token: Annotated[
        str | None,
        Parameter(env_var="MICROTOME_TOKEN", help="What visitors must bring; at least 16 characters."),
    ] = None,
    open: Annotated[
        bool, Parameter(negative="--no-open", help="Open the browser, where there is a screen.")
    ] = True,
) -> int:
    """Look into the store: examinations, layers, examples, comparisons, papers, in the browser.

    Served from this machine alone until Ctrl-C, without any network. Nothing but tags is written.
    """
    from microtome.store import open_store
    from microtome.web import address, application, listen, serve

    secret = token or ""
    with listen(host, port, secret) as listening, open_store(store, create=False) as opened:
        anyone = host in ("0.0.0.0", "::", "")
        app = application(opened, atlas=_papers, hosts=("*",) if anyone else (host,), token=secret)
        where = address(listening, host, secret)
        show(where)
        say("Ctrl-C ends it")

        def started() -> None:
            app.state.lab.warm()
            if open and _has_screen():
                _open(where)

        serve(app, listening, started)
    return 0


def _papers() -> list[object]:
    from microtome.atlas import entries

    return list(entries(say))


def _has_screen() -> bool:
    return sys.platform in ("darwin", "win32") or any(
        os.environ.get(k) for k in ("DISPLAY", "WAYLAND_DISPLAY")
    )


def _open(where: str) -> None:
    import threading
    import webbrowser

    # A browser on the terminal would hold the server up.
    threading.Thread(target=webbrowser.open, args=(where,), daemon=True).start()
