"""A channel on which something goes wrong, once, at a chosen frame."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

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
    KILL = "kill"  # the process that sends it ends, without a word


class KilledError(BaseException):
    """The end of a process, for the thread that plays it: nothing catches it, nothing is saved after it."""


@dataclass
class Plan:
    """One fault: of which party, at which frame that it sends, counted over all connections.

    happened: whether it has. on_kill: called before the other side can notice. sent: digests of all frames
    of tokens, by direction.
    """

    fault: Fault
    party: Role
    frame: int
    seconds: float = 0.0
    happened: bool = False
    on_kill: Callable[[Role], None] = lambda role: None

    def __post_init__(self) -> None:
        self.count = {Role.CLIENT: 0, Role.SERVER: 0}
        self.sent: set[tuple[Role, bytes]] = set()
        self.repeated = 0

    def due(self, role: Role) -> bool:
        """Whether the frame that this party sends now is the one."""
        self.count[role] += 1
        if self.happened or role is not self.party or self.count[role] != self.frame:
            return False
        self.happened = True
        return True

    def note(self, role: Role, payload: memoryview) -> None:
        """A frame of tokens: all of them are fresh, so none is ever the same as another."""
        key = (role, hashlib.blake2b(payload, digest_size=16).digest())
        self.repeated += key in self.sent
        self.sent.add(key)


class FaultyChannel(SocketChannel):
    """A connection that follows a plan, or counts frames without one."""

    def __init__(self, role: Role, sock: socket.socket, plan: Plan) -> None:
        super().__init__(role, sock, timeout=60.0)
        self._plan = plan

    def _write(self, payload: memoryview) -> None:
        if len(payload) >= _SMALL and self.ledger.place[0] in _PHASES:
            self._plan.note(self.role, payload)
        if not self._plan.due(self.role):
            return super()._write(payload)
        fault = self._plan.fault
        if fault is Fault.DELAY:
            time.sleep(self._plan.seconds)
            return super()._write(payload)
        if fault is Fault.DUPLICATE:
            super()._write(payload)
            return super()._write(payload)
        if fault is Fault.TRUNCATE:
            frame = pack_header(Kind.DATA, len(payload)) + bytes(payload)
            self._write_all(memoryview(frame)[: 1 + len(frame) // 2])
        if fault is Fault.KILL:
            self._plan.on_kill(self.role)
            self.close()
            raise KilledError
        self.close()
        raise PeerGoneError("the connection broke; start a new session")


def faulty_pair(plan: Plan) -> tuple[FaultyChannel, FaultyChannel]:
    """(client end, server end) over TCP, without TLS, which would hide what the frames suffer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return FaultyChannel(Role.CLIENT, near, plan), FaultyChannel(Role.SERVER, far, plan)
