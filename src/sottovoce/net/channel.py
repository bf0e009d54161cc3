"""A channel joins the two parties of one session: blocking, in order, framed, accounted.

Every size on it is public and known to both sides beforehand, so a frame of any other size is an error and
not data.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .frame import MAX_PAYLOAD
from .ledger import Ledger
from .role import Role

Payload = bytes | bytearray | memoryview | npt.NDArray[Any]


def as_bytes(payload: Payload) -> memoryview:
    """The payload as a flat view of bytes, without a copy where its memory is contiguous."""
    if isinstance(payload, np.ndarray):
        if payload.size == 0:
            return memoryview(b"")
        if payload.ndim == 1 and payload.dtype == np.uint8 and payload.flags.c_contiguous:
            return payload.data
        return np.ascontiguousarray(payload).reshape(-1).view(np.uint8).data
    view = memoryview(payload)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


class Turn(Protocol):
    """What a party holds while it computes, and gives back while it waits; see `parties.fair`."""

    def pause(self) -> None:
        """Give it back."""
        ...

    def resume(self) -> None:
        """Wait for it."""
        ...


class Channel(ABC):
    """One connection to the other party. Not thread-safe: one thread owns it (`close` may come from any).

    `tap`, if set, is called with every payload received, before it is used: tests and `demo` look through it
    at what this party gets to see. `tap_sent`, if set, is called with every
    payload before it is sent: what the other party gets to see. `turn`, if set, is given back during every
    wait for the other party. `agreed` is what both parties agreed on before the session began, a digest that
    goes into its keys; empty without a handshake.
    """

    is_network = True

    def __init__(self, role: Role) -> None:
        self.role = role
        self.ledger = Ledger()
        self.tap: Callable[[memoryview], None] | None = None
        self.tap_sent: Callable[[memoryview], None] | None = None
        self.turn: Turn | None = None
        self.agreed = b""

    def establish(self, agreed: bytes) -> None:
        """The handshake is over, with this digest of what was agreed on at both parties."""
        self.agreed = agreed

    def send(self, payload: Payload) -> None:
        """Send one frame. Cost: one message of len(payload) bytes."""
        view = as_bytes(payload)
        self.ledger.message(self.role, len(view))
        self._send(view)

    def recv(self, size: int) -> memoryview:
        """Receive one frame of exactly `size` bytes, as writable memory that the caller owns.

        Raises FrameError for any other size, PeerGoneError if the connection ends, and whatever error the
        other party gave as its reason for giving up.
        """
        self.ledger.message(self.role.other, size)
        return self._received(self._read(size, size))

    def recv_message(self, max_size: int, booked: bool = True) -> memoryview:
        """Receive one frame of at most `max_size` bytes: only for handshakes and control messages.

        booked=False leaves the entry in the ledger to the caller, who knows its phase only after reading it.
        """
        view = self._received(self._read(0, max_size))
        if booked:
            self.ledger.message(self.role.other, len(view))
        return view

    def exchange(self, payload: Payload, size: int) -> memoryview:
        """Send `payload` while the other party sends `size` bytes; never deadlocks. Cost: one round.

        An empty side sends no frame: exchange(b"", n) is recv(n) and exchange(x, 0) is send(x).
        """
        view = as_bytes(payload)
        if not size:
            if len(view):
                self.send(view)
            return memoryview(bytearray())
        if not len(view):
            return self.recv(size)
        if self.role == Role.CLIENT:
            self.ledger.exchange(len(view), size)
        else:
            self.ledger.exchange(size, len(view))
        self._send(view)
        return self._received(self._read(size, size))

    def flush(self) -> None:  # noqa: B027  (nothing is held back by the channels that exist today)
        """Push out anything not sent yet."""

    @abstractmethod
    def wait(self, timeout: float) -> bool:
        """Whether something can be received (a frame, the end, or an error) within `timeout` seconds."""

    @abstractmethod
    def close(self) -> None:
        """End the connection; the other party's next receive raises PeerGoneError. Idempotent."""

    @abstractmethod
    def abort(self, error: BaseException) -> None:
        """Tell the other party why this side gives up (best effort, never blocks long), then close."""

    @abstractmethod
    def _write(self, payload: memoryview) -> None:
        """Send one data frame; while the other party is not reading, take in what it sends."""

    @abstractmethod
    def _read(self, minimum: int, maximum: int) -> memoryview:
        """Receive one data frame of a size within the bounds."""

    def _send(self, view: memoryview) -> None:
        if self.tap_sent is not None:
            self.tap_sent(view)
        self._write(view)

    def _received(self, view: memoryview) -> memoryview:
        if self.tap is not None:
            self.tap(view)
        return view

    def __enter__(self) -> "Channel":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self.abort(error)
        self.close()


__all__ = ["MAX_PAYLOAD", "Channel", "Payload", "Turn", "as_bytes"]
