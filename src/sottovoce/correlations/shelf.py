"""Where a party keeps its pools: one for each server and model at the client, for each client at the server.

A session asks its shelf with `borrow(channel)`, both parties at the same point of their setup.
"""

import math
import os
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from sottovoce.correlations.agreement import KEY_BYTES, Answer, Wish, admit, join
from sottovoce.correlations.marks import ID_BYTES
from sottovoce.correlations.pool import DEFAULT_LIMIT, Pool, PoolBusyError
from sottovoce.errors import CorruptFileError, RefusedError, SottovoceError, UsageError
from sottovoce.net import Channel, Role

DAY = 86400.0


class Shelf(Protocol):
    """What a session asks for its pool."""

    def borrow(self, channel: Channel) -> Pool | None:
        """This party's half of the session's pool; None if the session goes without."""
        ...


class NoShelf:
    """Sessions without pools, at either party; the other one is told."""

    def borrow(self, channel: Channel) -> None:
        if channel.role is Role.SERVER:
            admit(channel, None)
        else:
            join(channel, None)


class ClientShelf:
    """The client's place for the pool that it shares with one server for one model.

    limit: bytes. make: a session without a pool makes one. reset: the old one is deleted first, at both
    parties. in_use: called if another session has the pool; this one goes without, unless it is to make one.
    """

    def __init__(
        self,
        directory: Path,
        limit: int = DEFAULT_LIMIT,
        make: bool = False,
        reset: bool = False,
        in_use: Callable[[], None] = lambda: None,
    ) -> None:
        self.directory, self.limit = directory, limit
        self.make, self.reset, self.in_use = make, reset, in_use

    def hints(self) -> Path:
        """A directory beside the pool for the server's hints (`hints.py`); all but the last are deleted."""
        directory = self.directory.with_name(self.directory.name + "-hints")
        for old in sorted(directory.glob("*.hint"), key=lambda path: path.stat().st_mtime)[:-1]:
            old.unlink()
        return directory

    def open(self) -> Pool | None:
        """The pool, if there is one. RefusedError if another session uses it."""
        if not self.directory.exists():
            return None
        try:
            return Pool(self.directory, self.limit)
        except CorruptFileError:
            if not self.reset:
                raise
            shutil.rmtree(self.directory)
            return None
        except UsageError:  # nothing there, or its creation was interrupted
            return None

    def create(self) -> Pool:
        """A new pool under a random public name, with a key that only the server will know."""
        return Pool.create(
            self.directory, secrets.token_bytes(ID_BYTES), secrets.token_bytes(KEY_BYTES), self.limit
        )

    def borrow(self, channel: Channel) -> Pool | None:
        """The pool of a session that begins, agreed on with the server; None if it goes without.

        RefusedError if the two halves do not fit, see `agreement.py`.
        """
        try:
            pool, answer = self.open(), Answer.UNKNOWN
        except PoolBusyError:
            if self.make or self.reset:
                raise
            self.in_use()
            join(channel, None)
            return None
        if pool is not None:
            try:
                answer = join(channel, pool, Wish.DELETE if self.reset else Wish.OPEN)
            except BaseException:
                pool.destroy() if self.reset else pool.close()
                raise
            if answer is Answer.OPEN and not self.reset:
                return pool
            # Without its other half it is of no use. (NONE: this server runs without pools for now.)
            pool.close() if answer is Answer.NONE else pool.destroy()
        return None if answer is Answer.NONE else self._anew(channel)

    def _anew(self, channel: Channel) -> Pool | None:
        if not self.make:
            join(channel, None)
            return None
        pool = self.create()
        try:
            if join(channel, pool, Wish.CREATE) is Answer.OPEN:
                return pool
        except BaseException:
            pool.destroy()
            raise
        pool.destroy()
        return None


class ServerShelf:
    """All clients' pools of one model. Every session thread may use it at the same time.

    limit: bytes a client. total: bytes of all together. most: pools. max_idle: seconds after which a pool
    that nobody opened may go; the client's half goes when the client next asks for it and hears that the
    server's is gone. patience: seconds that a session waits for a pool that is in use.
    """

    def __init__(
        self,
        directory: Path,
        limit: int = DEFAULT_LIMIT,
        total: int = 64 << 30,
        most: int = 256,
        max_idle: float = 30 * DAY,
        patience: float = 3.0,
    ) -> None:
        self.directory, self.limit, self.total = directory, limit, total
        self.most, self.max_idle, self.patience = most, max_idle, patience

    def borrow(self, channel: Channel) -> Pool | None:
        """The pool of a session that begins, agreed on with the client; None if it goes without."""
        return admit(channel, self)

    def find(self, id: bytes) -> Pool | None:
        """The pool of a client, opened; None if there is none (any more). RefusedError if it is in use."""
        path = self._path(id)
        if not path.exists():
            return None
        deadline = time.monotonic() + self.patience
        while True:
            try:
                pool = Pool(path, self._room(path))
            except UsageError:
                return None
            except PoolBusyError:
                # Perhaps a session of the same client that broke off, and is about to notice.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
                continue
            os.utime(path)
            return pool

    def create(self, id: bytes, secret: bytes) -> Pool:
        """A new pool; idle ones make place for it, then empty ones. RefusedError if there is still none."""
        self.evict()
        if len(self._pools()) >= self.most:
            self._drop_empty()
        if len(self._pools()) >= self.most:
            raise RefusedError(
                f"the server keeps prepared tokens for {self.most} clients and has no place for another; try"
                " later, or go on without --pool"
            )
        path = self._path(id)
        if path.exists():
            raise RefusedError("the server has a correlation pool of that name; prepare with --reset")
        return Pool.create(path, id, secret, self._room(path))

    def evict(self) -> int:
        """Delete pools that have been idle too long, never one in use; returns how many."""
        gone = 0
        for path in self._pools():
            with suppress(SottovoceError, OSError):
                if time.time() - path.stat().st_mtime > self.max_idle:
                    Pool(path, self.limit).destroy()
                    gone += 1
        return gone

    def _drop_empty(self) -> None:
        """Delete the pool without items that was opened least lately. Making one costs a client a handshake,
        so that somebody could take all places; keeping one then costs work."""
        for path in sorted(self._pools(), key=_touched):
            if not any(path.glob("*.items")):
                with suppress(SottovoceError, OSError):  # in use, or gone meanwhile
                    Pool(path, self.limit).destroy()
                    return

    def size(self) -> int:
        """Bytes of all pools."""
        return sum(map(_size, self._pools()))

    def count(self) -> int:
        """How many there are."""
        return len(self._pools())

    def _room(self, path: Path) -> int:
        """Bytes that the pool at `path` may hold now."""
        others = sum(_size(other) for other in self._pools() if other != path)
        return max(0, min(self.limit, self.total - others))

    def _pools(self) -> list[Path]:
        if not self.directory.exists():
            return []
        return [path for path in self.directory.iterdir() if path.is_dir()]

    def _path(self, id: bytes) -> Path:
        return self.directory / id.hex()


def _touched(directory: Path) -> float:
    with suppress(OSError):
        return directory.stat().st_mtime
    return math.inf


def _size(directory: Path) -> int:
    with suppress(OSError):
        return sum(entry.stat().st_size for entry in os.scandir(directory))
    return 0
