"""What a web page from elsewhere, or a name that was bent to this address, is kept from doing here.

Every page that a browser shows can send requests to loopback addresses. So: the Host header must name this
machine (a DNS name rebound to 127.0.0.1 does not), an Origin must be this very proxy, a request with a body
must be JSON (which no form can send without asking first), and bodies are bounded.

Other users of this machine are kept out by a token, if the proxy was given one.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..parties.status import names_this_machine
from .problems import Problem
from .token import Token

# No inline code, nothing from elsewhere, nobody may frame the page.
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """ASGI middleware in front of everything. token: what requests must show, None for nothing."""

    def __init__(self, app: ASGIApp, token: Token | None = None) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        send = _with_headers(send)
        headers = Headers(scope=scope)
        problem = self._check(scope["method"], headers) or self._unlock(scope["path"], headers)
        if problem is not None:
            more = {"WWW-Authenticate": "Bearer"} if problem.status == 401 else None
            response = JSONResponse(problem.to_json(), problem.status, more)
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, method: str, headers: Headers) -> Problem | None:
        host = headers.get("host", "")
        if len(headers.getlist("host")) != 1 or not names_this_machine(host):
            return _forbidden("this proxy answers to localhost only; open it under that name")
        origin = headers.get("origin")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            return _forbidden("requests of other web pages are not answered")
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return _forbidden("requests of other web pages are not answered")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if method == "POST" and kind != "application/json":
            return Problem(
                415, "send JSON, with Content-Type: application/json", code="unsupported_media_type"
            )
        return None

    def _unlock(self, path: str, headers: Headers) -> Problem | None:
        """Everything but the page's own files, which say nothing, needs the token."""
        if self._token is None or path == "/" or path.startswith("/page/"):
            return None
        if len(headers.getlist("authorization")) == 1 and self._token.opens(headers["authorization"]):
            return None
        return Problem(
            401,
            "this proxy wants the token in its --token-file: give it as the API key "
            "(Authorization: Bearer …)",
            code="invalid_api_key",
        )


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = {name.lower() for name, _ in message["headers"]}
            message["headers"] = [
                *message["headers"],
                *(
                    (name.lower().encode(), value.encode())
                    for name, value in SECURITY_HEADERS.items()
                    if name.lower().encode() not in present
                ),
            ]
        await send(message)

    return wrapped


def _forbidden(message: str) -> Problem:
    return Problem(403, message, kind="permission_error", code="forbidden")
