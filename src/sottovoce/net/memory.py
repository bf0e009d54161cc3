"""Two parties in one process: a pair of channels over queues, and a runner for tests."""

from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from time import perf_counter
from typing import TypeVar

from ..errors import PeerGoneError
from .channel import Channel
from .frame import Kind, check_size, pack_error, pack_header, parse_error
from .role import Role

A = TypeVar("A")
B = TypeVar("B")

_Frame = tuple[Kind, bytearray] | None


class MemoryChannel(Channel):
    """One end of an in-process pair; same accounting and same errors as the network channels."""

    is_network = False

    def __init__(self, role: Role, inbox: "SimpleQueue[_Frame]", outbox: "SimpleQueue[_Frame]") -> None:
        super().__init__(role)
        self._inbox = inbox
        self._outbox = outbox
        self._closed = False
        self._peeked: list[_Frame] = []

    def wait(self, timeout: float) -> bool:
        if not self._peeked:
            try:
                self._peeked.append(self._inbox.get(timeout=timeout))
            except Empty:
                return False
        return True

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._outbox.put(None)

    def abort(self, error: BaseException) -> None:
        if not self._closed:
            self._outbox.put((Kind.ERROR, bytearray(pack_error(error))))
        self.close()

    def _write(self, payload: memoryview) -> None:
        if self._closed:
            raise PeerGoneError("this channel is closed; open a new session")
        pack_header(Kind.DATA, len(payload))
        # A copy: the caller may overwrite its array while the frame is in flight, as after a real send.
        self._outbox.put((Kind.DATA, bytearray(payload)))

    def _read(self, minimum: int, maximum: int) -> memoryview:
        start = perf_counter()
        frame = self._peeked.pop() if self._peeked else self._inbox.get()
        self.ledger.waited(perf_counter() - start)
        if frame is None:
            self._inbox.put(None)
            raise PeerGoneError("the other party ended the session in the middle of the protocol")
        kind, payload = frame
        if kind == Kind.ERROR:
            raise parse_error(payload)
        check_size(len(payload), minimum, maximum)
        return memoryview(payload)


def memory_pair() -> tuple[MemoryChannel, MemoryChannel]:
    """(client end, server end) of a channel inside this process."""
    up: SimpleQueue[_Frame] = SimpleQueue()
    down: SimpleQueue[_Frame] = SimpleQueue()
    return MemoryChannel(Role.CLIENT, down, up), MemoryChannel(Role.SERVER, up, down)


def run_pair(
    client_fn: Callable[[Channel], A],
    server_fn: Callable[[Channel], B],
    channels: tuple[Channel, Channel] | None = None,
) -> tuple[A, B]:
    """Run both parties in two threads over `channels` (default: a memory pair) and return both results.

    If a party raises, its channel is closed so that the other one cannot hang, and the first error is raised
    here.
    """
    client, server = channels or memory_pair()
    failures: list[BaseException] = []
    server_result: list[B] = []

    def serve() -> None:
        try:
            server_result.append(server_fn(server))
        except BaseException as error:  # noqa: BLE001  (carried to the caller's thread)
            failures.append(error)
            server.close()

    thread = Thread(target=serve, name="server", daemon=True)
    thread.start()
    client_result: list[A] = []
    try:
        client_result.append(client_fn(client))
    except BaseException as error:  # noqa: BLE001
        failures.append(error)
        client.close()
    thread.join()
    if failures:
        raise failures[0]
    return client_result[0], server_result[0]
