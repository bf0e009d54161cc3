"""Running the application on a port of the loopback interface."""

from __future__ import annotations

import socket
from threading import Event, Thread

import uvicorn
from starlette.types import ASGIApp

from ..errors import UsageError

_MOST_CONNECTIONS = 64


class WebServer:
    """Listens as soon as it is made; `run` serves until it is told to stop."""

    def __init__(self, app: ASGIApp, host: str = "127.0.0.1", port: int = 0) -> None:
        # The protocol is named because asyncio sends small packets at once only on sockets that say TCP.
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host, port))
            self._socket.listen(64)
        except (OSError, OverflowError) as error:
            self._socket.close()
            raise UsageError(
                f"cannot listen on {host}:{port} ({error}); choose another --port, 0 picks a free one"
            ) from None
        self.port = int(self._socket.getsockname()[1])
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
        config = uvicorn.Config(
            app,
            log_level="error",  # paths and peers are nobody's business; errors name no content
            access_log=False,
            server_header=False,
            date_header=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_graceful_shutdown=5,
            lifespan="on",
            ws="none",
        )
        self._server = uvicorn.Server(config)
        self._ended = Event()

    def run(self) -> None:
        """Serve in this thread until a signal (in the main thread) or `stop`."""
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()
            self._ended.set()

    def stop(self) -> None:
        """From another thread."""
        self._server.should_exit = True

    def __enter__(self) -> WebServer:
        """Serve in a thread: for tests and for programs that embed a proxy."""
        Thread(target=self.run, name="web", daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        self._ended.wait(30.0)
