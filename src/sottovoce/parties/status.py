"""`/health` and `/metrics` of a server, for those who operate it: HTTP on a port of its own, loopback only
unless told otherwise. There it answers under this machine's names only, so that no web page can reach it by a
name that was bent to this address.
"""

import json
import re
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from ..errors import UsageError
from .prometheus import CONTENT_TYPE

_TIMEOUT = 5.0  # seconds that a connection may be silent
_LOCAL = ("localhost", "127.0.0.1", "::1")
_HOST = re.compile(r"(\[::1\]|localhost|127\.0\.0\.1)(:[0-9]{0,5})?", re.IGNORECASE)


def names_this_machine(host: str) -> bool:
    """Whether a Host header has one of the names of the loopback interface, with or without a port."""
    return _HOST.fullmatch(host) is not None


class StatusServer:
    """Answers from threads of its own, from the moment it is made: 503 while the model loads.

    status: 'loading', 'ready' or 'stopping'. page: the text of /metrics.
    """

    def __init__(self, host: str, port: int) -> None:
        self.status = "loading"
        self.local = host in _LOCAL
        self.page: Callable[[], str] = lambda: ""
        try:
            self._server = ThreadingHTTPServer((host, port), _handler(self))
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"cannot listen on {host}:{port} for /metrics ({error}); choose another --metrics-port"
            ) from None
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        Thread(target=self._server.serve_forever, name="status", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Status code, content type, body."""
        if path == "/health":
            code = 200 if self.status == "ready" else 503
            return code, "application/json", json.dumps({"status": self.status}).encode()
        if path == "/metrics":
            return 200, CONTENT_TYPE, self.page().encode()
        return 404, "application/json", b'{"error": "there are /health and /metrics"}'


def _handler(status: StatusServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _TIMEOUT

        def do_GET(self) -> None:  # noqa: N802  (the base class wants these names)
            code, kind, body = status.answer(self.path.partition("?")[0])
            if status.local and not names_this_machine(self.headers.get("Host", "")):
                code, kind, body = 403, "application/json", b'{"error": "this answers to localhost only"}'
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            if code == 503:
                self.send_header("Retry-After", "5")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def version_string(self) -> str:
            return "sottovoce"

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: who scrapes is no news."""

    return Handler
