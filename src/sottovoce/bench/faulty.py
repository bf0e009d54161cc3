"""A channel on which something goes wrong, once, at a chosen frame; and what must never happen twice."""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import signal
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from threading import Lock
from typing import Any

from sottovoce.correlations.pool import Pool
from sottovoce.errors import PeerGoneError
from sottovoce.net import Role, SocketChannel
from sottovoce.net.frame import Kind, pack_header

_SMALL = 64  # bytes; shorter frames (commands, single bits) repeat by accident
_PHASES = ("prefill", "decode", "verify")


class Fault(StrEnum):
    """What happens instead of sending a frame."""

    DISCONNECT = "disconnect"  # the connection breaks before it
    TRUNCATE = "truncate"  # in the middle of it
    DUPLICATE = "duplicate"  # it is sent twice
    DELAY = "delay"  # it is late
    KILL = "kill"  # the process that sends it gets SIGKILL


@dataclass(frozen=True)
class Plan:
    """One fault: of which party, at which frame that it sends, counted over all connections."""

    fault: Fault
    party: Role
    frame: int
    seconds: float = 0.0


class Board:
    """What all processes of a point write down: how many frames each party has sent, whether the fault has
    happened, digests of frames of tokens, rows of the pool that were taken. Survives a SIGKILL of any."""

    _STATE = struct.Struct("<QQQ")  # frames of the client, of the server, whether the fault has happened

    def __init__(self, directory: Path) -> None:
        path = directory / "board"
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self._file, self._STATE.size)
        self._memory = mmap.mmap(self._file, self._STATE.size)
        self._log = os.open(directory / "log", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._path, self._lock = directory / "log", Lock()

    def close(self) -> None:
        self._memory.close()
        os.close(self._file)
        os.close(self._log)

    @property
    def frames(self) -> dict[Role, int]:
        """How many each party has sent."""
        return dict(zip(Role, self._STATE.unpack(self._memory)[:2], strict=True))

    def due(self, plan: Plan, role: Role) -> bool:
        """Count a frame; whether it is the plan's."""
        with self._lock:  # the lock of the file is one of processes
            fcntl.lockf(self._file, fcntl.LOCK_EX)
            try:
                *count, happened = self._STATE.unpack(self._memory)
                count[role] += 1
                due = not happened and role is plan.party and count[role] == plan.frame
                self._STATE.pack_into(self._memory, 0, *count, happened or due)
                return due
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN)

    def sent(self, role: Role, payload: memoryview) -> None:
        """A frame of tokens: all of them are fresh, so none is ever the same as another."""
        digest = hashlib.blake2b(payload, digest_size=16).hexdigest()
        os.write(self._log, f"frame {role.name} {digest} 0 1\n".encode())

    def taken(self, role: Role, pool: bytes, stream: str, first: int, stop: int) -> None:
        """Rows of a party's half of the pool were handed out."""
        name = f"{pool.hex()}/{stream.replace(' ', '_')}"
        os.write(self._log, f"row {role.name} {name} {first} {stop}\n".encode())

    def repeated(self, what: str) -> int:
        """How many frames (`frame`) or rows (`row`) came more than once."""
        spans: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
        for line in self._path.read_text().splitlines():
            kind, role, name, low, high = line.split()
            if kind == what:
                spans[role, name].append((int(low), int(high)))
        again = 0
        for found in spans.values():
            end = 0
            for first, stop in sorted(found):
                again += max(0, min(stop, end) - first)
                end = max(end, stop)
        return again


def watch_pools(board: Board, role: Role) -> None:
    """From now on in this process, the rows of pools that are taken go on the board."""
    take = Pool.take

    def watched(self: Pool, wanted: Mapping[str, int]) -> dict[str, list[Any]]:
        before = dict(self._taken)
        try:
            return take(self, wanted)
        finally:
            for stream, stop in self._taken.items():
                if stop > before.get(stream, 0):
                    board.taken(role, self.id, stream, before.get(stream, 0), stop)

    setattr(Pool, "take", watched)  # noqa: B010  (a method is replaced, in a process that ends with the point)


class FaultyChannel(SocketChannel):
    """A connection that follows a plan, or counts frames without one."""

    def __init__(self, role: Role, sock: socket.socket, plan: Plan | None, board: Board) -> None:
        super().__init__(role, sock, timeout=60.0)
        self._plan, self._board = plan, board

    def _write(self, payload: memoryview) -> None:
        if len(payload) >= _SMALL and self.ledger.place[0] in _PHASES:
            self._board.sent(self.role, payload)
        plan = self._plan or Plan(Fault.DELAY, self.role, 0)
        if not self._board.due(plan, self.role):
            return super()._write(payload)
        if plan.fault is Fault.DELAY:
            time.sleep(plan.seconds)
            return super()._write(payload)
        if plan.fault is Fault.DUPLICATE:
            self._write_all(memoryview(self._frame(payload)))
            return super()._write(payload)
        if plan.fault is Fault.TRUNCATE:
            frame = self._frame(payload)
            self._write_all(memoryview(frame)[: 1 + len(frame) // 2])
        if plan.fault is Fault.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        self.close()
        raise PeerGoneError("the connection broke; start a new session")

    def _frame(self, payload: memoryview) -> bytes:
        return pack_header(Kind.DATA, len(payload), self._frames_out) + bytes(payload)
