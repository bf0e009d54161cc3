"""Which pool of prepared material belongs to a session: one per server, model, agreement and client."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .. import __version__
from ..correlations.pool import DEFAULT_LIMIT
from ..correlations.shelf import ClientShelf, ServerShelf
from .protocol import Welcome


@dataclass(frozen=True)
class Pools:
    """The client's pools. limit: bytes each. make: start one where there is none. reset: delete the old one,
    at both parties. in_use: called where another session has it, and this one goes without."""

    directory: Path
    limit: int = DEFAULT_LIMIT
    make: bool = False
    reset: bool = False
    in_use: Callable[[], None] = lambda: None

    def shelf(self, server: str, welcome: Welcome) -> ClientShelf:
        """server: what the client recognises it by, its certificate."""
        name = _name(server.encode() + welcome.digest())
        return ClientShelf(self.directory / name, self.limit, self.make, self.reset, self.in_use)


def server_shelf(
    directory: Path, welcome: Welcome, limit: int = DEFAULT_LIMIT, total: int = 64 << 30
) -> ServerShelf:
    """The server's halves of all clients' pools for what it offers now. limit: bytes a client; total: all
    together."""
    return ServerShelf(directory / _name(welcome.digest()), limit, total)


def evict_pools(directory: Path) -> int:
    """Delete what no client came back for in a month, of other models and releases too; returns how many
    clients' it was. directory: as for `server_shelf`. What a server uses stays.
    """
    shelves = directory.iterdir() if directory.exists() else ()
    return sum(ServerShelf(path).evict() for path in shelves if path.is_dir())


def _name(of: bytes) -> str:
    """Material prepared by another release, or for other weights, is never found again."""
    return hashlib.sha256(__version__.encode() + b"\0" + of).hexdigest()[:32]
