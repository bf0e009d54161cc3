"""The dealer as a program, and how a party reaches it. Read the warning in `correlations/dealer.py` first."""

import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event, Lock, Thread

from ..correlations.dealer import deal, read_hello
from ..errors import (
    PeerGoneError,
    ProtocolError,
    RefusedError,
    SottovoceError,
    UsageError,
)
from ..net import Channel, Role, SocketChannel
from ..net.tls import KnownHosts, wrap_client, wrap_server
from .address import Address, open_socket

DEALER_PORT = 7444
_POLL = 0.25
_TIMEOUT = 30.0
# How long the first party of a session is kept waiting for the second, and how many may wait.
_PATIENCE = 60.0
_MOST_WAITING = 64
_SESSION_TIMEOUT = 1800.0


@dataclass(frozen=True)
class DealerAddress:
    """Where a party finds the dealer. pin: as for `Client.connect`; None sends everything in the open."""

    address: Address
    pin: KnownHosts | str | None

    def connect(self) -> Channel:
        """A channel to the dealer, of which this party is the client."""
        sock = open_socket(self.address, _TIMEOUT, "sottovoce dealer")
        if self.pin is not None:
            sock, _, _ = wrap_client(sock, self.address.host, self.address.port, self.pin, _TIMEOUT)
        return SocketChannel(Role.CLIENT, sock, timeout=_TIMEOUT)


class Dealer:
    """Deals to every pair of parties that come with the same token. Keeps nothing, logs counts only."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None,
        on_end: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._tls, self._on_end = tls, on_end
        self._stopping, self._lock = Event(), Lock()
        self._waiting: dict[bytes, tuple[Role, SocketChannel, float]] = {}
        try:
            self._listener = socket.create_server((host, port), backlog=64)
        except (OSError, OverflowError) as error:
            raise UsageError(f"cannot listen on {host}:{port} ({error}); choose another port") from None
        self._listener.settimeout(_POLL)
        self.host, self.port = host, int(self._listener.getsockname()[1])

    def serve_forever(self) -> None:
        """Until `stop`."""
        with self._listener:
            while not self._stopping.is_set():
                try:
                    sock, _ = self._listener.accept()
                except TimeoutError:
                    continue
                except OSError:
                    time.sleep(_POLL)
                    continue
                Thread(target=self._welcome, args=(sock,), name="dealer", daemon=True).start()

    def stop(self) -> None:
        """Accept nothing more. Sessions end when their parties find nobody to ask."""
        self._stopping.set()

    def __enter__(self) -> "Dealer":
        Thread(target=self.serve_forever, name="dealer-accept", daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _welcome(self, sock: socket.socket) -> None:
        """A new connection: the first of its session waits, the second one's thread deals to both."""
        channel: SocketChannel | None = None
        try:
            if self._tls is not None:
                sock = wrap_server(sock, self._tls)
            channel = SocketChannel(Role.SERVER, sock, timeout=_TIMEOUT)
            role, token = read_hello(channel)
            partner = self._partner(role, token, channel)
            if partner is not None:
                pair = (channel, partner) if role is Role.CLIENT else (partner, channel)
                self._deal(*pair, token)
        except SottovoceError as error:
            if channel is not None:
                channel.abort(error)

    def _partner(self, role: Role, token: bytes, channel: SocketChannel) -> SocketChannel | None:
        with self._lock:
            for old, (_, late, since) in list(self._waiting.items()):
                if time.monotonic() - since > _PATIENCE:
                    del self._waiting[old]
                    late.abort(PeerGoneError("the other party did not come to the dealer; try again"))
            if token not in self._waiting:
                if len(self._waiting) >= _MOST_WAITING:
                    raise RefusedError("the dealer has too many visitors; try again later")
                self._waiting[token] = (role, channel, time.monotonic())
                return None
            there, partner, _ = self._waiting.pop(token)
        if there is role:
            error = ProtocolError("two parties of the same role came to the dealer for one session")
            partner.abort(error)
            raise error
        return partner

    def _deal(self, client: SocketChannel, server: SocketChannel, token: bytes) -> None:
        client.timeout = server.timeout = _SESSION_TIMEOUT
        reason = "the parties left"
        try:
            deal(client, server, token)
        except PeerGoneError:
            pass
        except SottovoceError as error:
            reason = f"{type(error).__name__}: {error}"
            for channel in (client, server):
                channel.abort(error)
        finally:
            client.close()
            server.close()
            self._on_end(reason)


__all__ = ["DEALER_PORT", "Dealer", "DealerAddress"]
