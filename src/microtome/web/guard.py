"""Who may ask: the right host, a token where one is set, and no other site.

A page of another site can make a browser send requests to this machine. It cannot choose the Host header (so a name
that was rebound to 127.0.0.1 is refused), cannot hide that it is another site (``Origin``, ``Sec-Fetch-Site``), and
does not have the token, whose cookie is ``SameSite=Strict``.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "microtome_token"
MOST_BODY = 4096
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SAFE = ("GET", "HEAD")


def policy(style_hashes: Iterable[str]) -> str:
    """The content-security policy: our own scripts and styles, pictures written into the page, and nothing else."""
    styles = " ".join(f"'{each}'" for each in style_hashes)
    return (
        "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data:; "
        f"style-src 'self' {styles}; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )


class Guard:
    """ASGI middleware; the outermost.

    Args:
        hosts: names the Host header may have, besides those of loopback; ("*",) for any, which asks for a token.
        token: what a visitor must bring as ``?token=``, as the cookie that this sets, or as a bearer; "" for none.
        policy: content-security policy of every answer.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str], token: str, policy: str) -> None:
        self.app, self.token, self.policy = app, token, policy
        self.hosts = frozenset((*LOOPBACK, *(host.lower().strip("[]") for host in hosts)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on with the headers that keep a browser careful."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        answer = self._refusal(scope, headers) or self._welcome(scope, headers)

        async def careful(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(
                    {
                        "content-security-policy": self.policy,
                        "x-content-type-options": "nosniff",
                        "x-frame-options": "DENY",
                        "referrer-policy": "same-origin",
                        "cross-origin-opener-policy": "same-origin",
                        "cross-origin-resource-policy": "same-origin",
                    }
                )
                MutableHeaders(scope=message).setdefault("cache-control", "no-store")
            await send(message)

        await (answer or self.app)(scope, receive, careful)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        host = _name(headers.get("host", ""))
        if host not in self.hosts and not ("*" in self.hosts and self.token and host):
            return _no(
                421, f"this lab does not answer to the name '{host[:80]}'; open the address it printed"
            )
        if scope["method"] not in (*SAFE, "POST"):
            return _no(405, "only GET, HEAD and POST are known here")
        site = headers.get("sec-fetch-site", "")
        navigates = (
            headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        )
        if scope["method"] in SAFE:
            # A link from elsewhere may lead here; a picture or a script of another site may not read from here.
            return (
                _no(403, "another site may not read this lab") if _foreign(site) and not navigates else None
            )
        origin = headers.get("origin")
        if (
            _foreign(site)
            or origin is None
            or urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
        ):
            return _no(403, "what changes something is only taken from the lab's own pages")
        length = headers.get("content-length", "")
        if not length.isdigit() or int(length) > MOST_BODY:
            return _no(413, f"a request has at most {MOST_BODY} bytes")
        return None

    def _welcome(self, scope: Scope, headers: Headers) -> Response | None:
        """Nothing where the visitor may pass; else what to do about it."""
        if not self.token:
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if any(key == "token" and self._known(value) for key, value in query) and scope["method"] in SAFE:
            # The token leaves the address at once, so that it does not stay in the history or go to others.
            rest = urlencode([(key, value) for key, value in query if key != "token"])
            # Never "//": a browser would read the path as another site's name.
            path = "/" + scope["path"].lstrip("/\\")
            answer = RedirectResponse(path + (f"?{rest}" if rest else ""), status_code=303)
            answer.set_cookie(COOKIE, self.token, httponly=True, samesite="strict", path="/")
            return answer
        bearer = headers.get("authorization", "").removeprefix("Bearer ").strip()
        if self._known(bearer) or self._known(_cookie(headers.get("cookie", ""))):
            return None
        return _no(401, "this lab asks for its token: open the address that was printed, with ?token=...")

    def _known(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(errors="replace"), self.token.encode())


def _foreign(site: str) -> bool:
    return site in ("cross-site", "same-site")


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return (urlsplit("//" + host).hostname or "").lower()
    except ValueError:
        return ""


def _cookie(text: str) -> str:
    try:
        found = SimpleCookie(text).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def _no(status: int, said: str) -> Response:
    return PlainTextResponse(f"{said}\n", status_code=status)
