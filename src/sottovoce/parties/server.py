"""The server: listens, and gives every connection a session in a thread of its own."""

import errno
import math
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable
from threading import Event, Lock, Thread

from ..engines.base import ModelParty
from ..errors import PeerConnectionError, UsageError
from ..net import Channel, Role, SocketChannel
from ..net.sockets import HANDSHAKE_EARLY
from ..net.tls import client_fingerprint, wrap_server
from .admission import Admission, network_of
from .fair import FairGate
from .kept import KeptSessions
from .observer import Observer
from .protocol import Welcome
from .session import ServerSession, SessionReport

_POLL = 0.25
_HANDSHAKE_TIMEOUT = 15.0

Tap = Callable[[str, memoryview], None]


def listener(host: str, port: int) -> socket.socket:
    """A socket that listens; UsageError if there can be none."""
    try:
        return socket.create_server((host, port), backlog=64)
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            why = "another program listens there"
        else:
            why = str(error).split(" (while")[0]
        raise UsageError(
            f"cannot listen on {host}:{port} ({why}); choose another --host or --port, 0 picks a free one"
        ) from None


class Server:
    """Serve one engine on one address.

    open_party: makes the server's half of a new session. tls: None sends everything in the open (benchmarks
    on one machine only). on_open, on_close: called from session threads. tap: called with the session id
    and every payload received, for audits of what a server gets to see.
    """

    def __init__(
        self,
        open_party: Callable[[], ModelParty],
        welcome: Welcome,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None,
        max_sessions: int = 8,
        idle_timeout: float = 1800.0,
        on_open: Callable[[ServerSession], None] = lambda session: None,
        on_close: Callable[[SessionReport], None] = lambda report: None,
        tap: Tap | None = None,
        admission: Admission | None = None,
        observer: Observer | None = None,
        gate: FairGate | None = None,
        kept: KeptSessions | None = None,
        evict_after: float = math.inf,
    ) -> None:
        """admission: instead of `max_sessions` places for everybody and no queue. gate: how many sessions
        compute at the same time; None leaves it to the operating system. kept: where sessions are saved;
        from memory they go after `evict_after` seconds."""
        self._open_party = open_party
        self._welcome = welcome
        self._tls = tls
        self.admission = Admission(max_sessions) if admission is None else admission
        self._observer, self._gate, self._kept = observer or Observer(), gate, kept
        self._idle_timeout, self._evict_after = idle_timeout, evict_after
        self._on_open, self._on_close, self._tap = on_open, on_close, tap
        self._stopping = Event()
        self._lock = Lock()
        self._channels: dict[Thread, Channel | None] = {}
        self._from: Counter[str] = Counter()  # connections of every network
        self._accepting: Thread | None = None
        self._listener = listener(host, port)
        self._listener.settimeout(_POLL)
        self.host = host
        self.port = int(self._listener.getsockname()[1])

    def serve_forever(self) -> None:
        """Accept connections until `stop` is called (from a signal handler or another thread)."""
        with self._listener:
            while not self._stopping.is_set():
                try:
                    sock, address = self._listener.accept()
                except TimeoutError:
                    continue
                except OSError:
                    # Out of file descriptors, or the client left before it was accepted: go on serving the
                    # others.
                    time.sleep(_POLL)
                    continue
                self._accepted(sock, f"{address[0]}:{address[1]}", network_of(address[0]))

    def _accepted(self, sock: socket.socket, peer: str, network: str) -> None:
        """Give a connection a thread, if there may be one more."""
        most = 4 * (self.admission.places + self.admission.waiting)
        with self._lock:
            # Not even a handshake: connections that never get to one must not pile up threads, and those of
            # one client must leave room for the others'.
            full = len(self._channels) >= most or self._from[network] >= most * 3 // 4
        if full:
            return sock.close()
        thread = Thread(target=self._serve, args=(sock, peer, network), name=f"session-{peer}", daemon=True)
        with self._lock:
            self._channels[thread] = None
            self._from[network] += 1
        try:
            thread.start()
        except (RuntimeError, MemoryError):  # no memory for another one: the others go on
            self._left(thread, network)
            sock.close()

    def _left(self, thread: Thread, network: str) -> None:
        with self._lock:
            del self._channels[thread]
            self._from[network] -= 1
            self._from += Counter()  # forget networks without connections

    def stop(self) -> None:
        """Accept nothing more; idle sessions end at once, busy ones after the token they are at."""
        self._stopping.set()
        self.admission.close()

    def wait(self, grace: float) -> bool:
        """After `stop`: give sessions `grace` seconds, then cut them. Whether all ended by themselves."""
        deadline = time.monotonic() + grace
        if self._accepting is not None:
            self._accepting.join()
        for thread in list(self._channels):
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            left = list(self._channels.items())
        if self._kept is not None:
            self._kept.cancel()
        for _, channel in left:
            if channel is not None:
                channel.close()
        for thread, _ in left:
            thread.join(1.0)
        return not left

    @property
    def sessions(self) -> int:
        """Connections that are open now."""
        with self._lock:
            return len(self._channels)

    def start(self) -> "Server":
        """Serve in a background thread: for tests and for programs that embed a server."""
        self._accepting = Thread(target=self.serve_forever, name="accept", daemon=True)
        self._accepting.start()
        return self

    def __enter__(self) -> "Server":
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()
        self.wait(5.0)

    def _serve(self, sock: socket.socket, peer: str, network: str) -> None:
        from threading import current_thread

        me = current_thread()
        try:
            if self._tls is not None:
                sock = wrap_server(sock, self._tls)
            channel = SocketChannel(Role.SERVER, sock, timeout=_HANDSHAKE_TIMEOUT)
            # However slowly its bytes drip, a connection gets to its session in time or ends.
            channel.most_early = HANDSHAKE_EARLY
            channel.deadline = time.monotonic() + _HANDSHAKE_TIMEOUT + self.admission.patience
            with self._lock:
                self._channels[me] = channel
            self._run(channel, peer, client_fingerprint(sock))
        except PeerConnectionError as error:
            self._closed(SessionReport(id="-", peer=peer, ended=str(error)))
        finally:
            self._left(me, network)

    def _run(self, channel: SocketChannel, peer: str, certificate: str | None) -> None:
        session = ServerSession(
            channel,
            self._open_party,
            self._welcome,
            peer=peer,
            certificate=certificate,
            idle_timeout=self._idle_timeout,
            stopping=self._stopping,
            admission=self.admission,
            observer=self._observer,
            turn=None if self._gate is None else self._gate.member(),
            kept=self._kept,
            evict_after=self._evict_after,
        )
        tap = self._tap
        if tap is not None:
            channel.tap = lambda view: tap(session.report.id, view)
        self._closed(session.run(self._on_open))

    def _closed(self, report: SessionReport) -> None:
        self._observer.closed(report)
        self._on_close(report)
