"""A channel that behaves as if a slower network lay between the parties: for benchmarks on one machine."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from struct import Struct

from sottovoce.errors import UsageError
from sottovoce.net import Role
from sottovoce.net.frame import HEADER_SIZE
from sottovoce.net.sockets import SocketChannel

_STAMP = Struct("<d")
# The last part of a wait is spent looking at the clock: a sleeping process wakes up too late.
_AWAKE = 1e-4


@dataclass(frozen=True)
class Network:
    """A symmetric network. rtt_ms: round trip; mbit: 10^6 bits a second each way, 0 for unlimited."""

    name: str = "loopback"
    rtt_ms: float = 0.0
    mbit: float = 0.0

    def __post_init__(self) -> None:
        if self.rtt_ms < 0 or self.mbit < 0:
            raise UsageError("a network's round trip and bandwidth cannot be negative")

    def __str__(self) -> str:
        return self.name

    @property
    def is_real(self) -> bool:
        """Nothing is emulated: frames arrive when they arrive."""
        return not self.rtt_ms and not self.mbit


LOOPBACK = Network()
LAN = Network("lan", rtt_ms=0.5, mbit=1000.0)
WAN = Network("wan", rtt_ms=40.0, mbit=100.0)
NETWORKS = (LOOPBACK, LAN, WAN)


class Link:
    """One direction of a network: frames leave one after the other at its bandwidth and travel half a round
    trip.
    """

    def __init__(self, network: Network) -> None:
        self._latency = network.rtt_ms / 2e3
        self._seconds_per_byte = 8e-6 / network.mbit if network.mbit else 0.0
        self._free = 0.0

    def delivery(self, now: float, size: int) -> float:
        """When a frame of `size` bytes handed over at `now` has arrived completely.

        Frames must be handed over in order of time.
        """
        self._free = max(now, self._free) + size * self._seconds_per_byte
        return self._free + self._latency


class ShapedChannel(SocketChannel):
    """A socket channel whose receiver waits until a frame would have arrived over `network`.

    Every frame is preceded by a frame of eight bytes that says when that is, on the clock that processes of
    one machine share; it is not booked. Sending never blocks for the network: its queue is as long as needed.
    TCP's own behaviour (slow start, losses) is not emulated.
    """

    def __init__(
        self,
        role: Role,
        sock: socket.socket,
        timeout: float | None = None,
        network: Network = LOOPBACK,
    ) -> None:
        super().__init__(role, sock, timeout)
        self.reshape(network)

    def reshape(self, network: Network) -> None:
        """Another network from the next frame on; both parties do this at the same point."""
        self.network = network
        self._link = Link(network)

    def _write(self, payload: memoryview) -> None:
        when = 0.0
        if not self.network.is_real:
            when = self._link.delivery(time.monotonic(), HEADER_SIZE + len(payload))
        super()._write(memoryview(_STAMP.pack(when)))
        super()._write(payload)

    def _read(self, minimum: int, maximum: int) -> memoryview:
        (when,) = _STAMP.unpack(super()._read(_STAMP.size, _STAMP.size))
        payload = super()._read(minimum, maximum)
        start = time.monotonic()
        if when > start:
            _sleep_until(when)
            self.ledger.waited(time.monotonic() - start)
        return payload


def _sleep_until(when: float) -> None:
    while (left := when - time.monotonic()) > 0:
        if left > _AWAKE:
            time.sleep(left - _AWAKE)
