"""Where a server is, and how a connection to it is opened."""

import socket
from dataclasses import dataclass
from pathlib import Path

from ..errors import PeerConnectionError, UsageError
from ..net import Channel, Role, SocketChannel
from ..net.tls import KnownHosts, wrap_client

DEFAULT_PORT = 7443
CONNECT_TIMEOUT = 10.0
# Of every wait in handshake and setup: a server may keep a client in its queue for a while.
HANDSHAKE_TIMEOUT = 60.0
_NOT_IN_A_HOST = set("/@[]?# \t\r\n\0")


@dataclass(frozen=True)
class Address:
    host: str
    port: int = DEFAULT_PORT

    @classmethod
    def parse(cls, text: str) -> "Address":
        """`host`, `host:port`, `[v6]:port`. UsageError for anything else."""
        host, _, port = text.rpartition(":") if ":" in text and not text.endswith("]") else (text, "", "")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            host = ""
        number = int(port) if port.isascii() and port.isdigit() else -1 if port else DEFAULT_PORT
        if not host or set(host) & _NOT_IN_A_HOST or not 0 < number < 65536:
            raise UsageError(
                f"{text!r} is not a server address; write host:port, for example localhost:{DEFAULT_PORT}"
            )
        return cls(host, number)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Identity:
    """The certificate a connection was made to, and whether it was seen for the first time."""

    fingerprint: str
    first_use: bool


@dataclass(frozen=True)
class Route:
    """How to reach a server, again if need be.

    pin: known hosts, a fingerprint, or None for no TLS at all. certificate: the client's own (PEM with its
    key), for servers that ask for one.
    """

    address: Address
    pin: KnownHosts | str | None
    certificate: Path | None = None
    timeout: float = CONNECT_TIMEOUT

    def open(self) -> tuple[Channel, Identity | None]:
        """Connect and check the server's certificate."""
        sock = open_socket(self.address, self.timeout)
        identity, host, port = None, self.address.host, self.address.port
        if self.pin is not None:
            sock, seen, first = wrap_client(sock, host, port, self.pin, self.timeout, self.certificate)
            identity = Identity(seen, first)
        return SocketChannel(Role.CLIENT, sock, timeout=HANDSHAKE_TIMEOUT), identity


def open_socket(address: Address, timeout: float, program: str = "sottovoce serve") -> socket.socket:
    """A TCP connection; PeerConnectionError says why there is none. program: what should listen there."""
    try:
        return socket.create_connection((address.host, address.port), timeout)
    except TimeoutError:
        why = f"no answer within {timeout:g} seconds"
    except ConnectionRefusedError:
        why = "nothing listens there"
    except socket.gaierror:
        why = "the name is unknown"
    except OSError as error:
        why = error.strerror or "it cannot be reached"
    raise PeerConnectionError(
        f"cannot connect to {address}: {why}; check the address, and that `{program}` is running there"
    )
