"""The routes: an address, the page it leads to, and what is said when there is none."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from microtome.drawing import STYLE
from microtome.errors import MicrotomeError, StoreError
from microtome.report.html import script_hash
from microtome.store import Store
from microtome.web import views
from microtome.web.guard import Guard, policy
from microtome.web.lab import Lab

ROUTES: tuple[tuple[str, Callable[[Lab, Request], Response], tuple[str, ...]], ...] = (
    ("/", views.subjects, ("GET",)),
    ("/running", views.running, ("GET",)),
    ("/e/{exam}", views.examination, ("GET",)),
    ("/e/{exam}/state", views.state, ("GET",)),
    ("/e/{exam}/tags", views.retag, ("POST",)),
    ("/e/{exam}/report.html", views.report, ("GET",)),
    ("/e/{exam}/f/{finding:path}", views.finding, ("GET",)),
    ("/e/{exam}/layers", views.layers, ("GET",)),
    ("/e/{exam}/layers/unit", views.unit, ("GET",)),
    ("/e/{exam}/examples", views.examples, ("GET",)),
    ("/e/{exam}/examples/cells", views.example_cells, ("GET",)),
    ("/e/{exam}/examples/{row}", views.example, ("GET",)),
    ("/compare", views.compare, ("GET",)),
    ("/atlas", views.atlas, ("GET",)),
    ("/atlas/{slug}", views.paper, ("GET",)),
    ("/static/{name}", views.static, ("GET",)),
    ("/favicon.ico", views.icon, ("GET",)),
)


def application(
    store: Store,
    *,
    atlas: Callable[[], Sequence[Any]] | None = None,
    hosts: Sequence[str] = (),
    token: str = "",
) -> Starlette:
    """The lab over an open store, as an ASGI application.

    Args:
        store: what is shown; stays open as long as the application is used.
        atlas: gives the papers' entries; called once, in a thread of its own. Pages above this floor pass it down.
        hosts: names under which the lab may be reached besides loopback's; ("*",) for any, which takes a token.
        token: what visitors must bring; "" asks for none.
    """
    lab = Lab(store, atlas)
    app = Starlette(
        routes=[Route(path, _bound(lab, view), methods=list(verbs)) for path, view, verbs in ROUTES],
        middleware=[Middleware(Guard, hosts=tuple(hosts), token=token, policy=policy([script_hash(STYLE)]))],
        exception_handlers={
            HTTPException: lambda request, error: views.trouble(
                lab, request, getattr(error, "status_code", 500), str(getattr(error, "detail", ""))
            ),
        },
    )
    app.state.lab = lab
    return app


def _bound(lab: Lab, view: Callable[[Lab, Request], Any]) -> Callable[[Request], Any]:
    """The view with its lab; what goes wrong in it becomes a page, inside the guard's headers."""

    async def endpoint(request: Request) -> Response:
        try:
            if request.method == "POST":
                # The guard has bounded its length.
                request.state.form = dict(parse_qsl((await request.body()).decode("utf-8", "replace")))
            # In a thread, so that reading the store holds nobody up.
            return await run_in_threadpool(view, lab, request)
        except HTTPException:
            raise
        except MicrotomeError as error:
            return await run_in_threadpool(views.trouble, lab, request, _status(error), str(error))
        except Exception as error:
            traceback.print_exc()
            said = f"MT199 this is a fault in microtome ({type(error).__name__}); the terminal shows more"
            return await run_in_threadpool(views.trouble, lab, request, 500, said)

    return endpoint


def _status(error: Exception) -> int:
    if isinstance(error, StoreError):
        return {"MT135": 404, "MT171": 400, "MT130": 403, "MT137": 503}.get(error.code, 500)
    return 400
