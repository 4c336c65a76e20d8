"""A socket on this machine, and the server on it."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from urllib.parse import urlencode

import uvicorn
from starlette.types import ASGIApp

from microtome.errors import UsageError

SHORTEST_TOKEN = 16


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int, token: str) -> socket.socket:
    """Open the socket; port 0 takes a free one.

    Raises:
        UsageError: MT172 when others could reach it and no token of 16 characters guards it; MT173 when it cannot be
            had.
    """
    if token and len(token) < SHORTEST_TOKEN:
        fix = "python -c 'import secrets; print(secrets.token_urlsafe())' makes one"
        raise UsageError(
            "MT172", f"a token has at least {SHORTEST_TOKEN} characters", where="--token", fix=fix
        )
    if not is_loopback(host) and not token:
        fix = "add --token TOKEN (or MICROTOME_TOKEN), or leave --host out"
        raise UsageError("MT172", "others can reach this address, so it needs a token", where=host, fix=fix)
    if not 0 <= port < 1 << 16:
        raise UsageError(
            "MT173", f"there is no port {port}", where="--port", fix="0 to 65535; 0 takes a free one"
        )
    try:
        family, _, _, _, where = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, socket.SOCK_STREAM)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(where)
            made.listen(128)
        except BaseException:
            made.close()
            raise
    except (OSError, OverflowError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        fix = "give another with --port, or --port 0 for a free one"
        raise UsageError(
            "MT173", f"the lab cannot listen: {reason}", where=f"{host}:{port}", fix=fix
        ) from error
    return made


def address(listening: socket.socket, host: str, token: str = "") -> str:
    """What to open in the browser."""
    port = listening.getsockname()[1]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}/" + (f"?{urlencode({'token': token})}" if token else "")


def serve(app: ASGIApp, listening: socket.socket, started: Callable[[], None] = lambda: None) -> None:
    """Answer until Ctrl-C."""

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started()

    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2
    )
    Server(config).run(sockets=[listening])
