"""What goes over the wire, for the chat page: sizes, places in the protocol, some first bytes.

These bytes are what the server, or somebody on the way behind TLS, has in hand.
"""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass
from threading import Lock
from time import monotonic
from typing import Any

from ..parties import Client

_SHOWN = 64  # bytes of a frame
_INTERVAL = 0.08  # seconds between samples: people cannot read faster, and the protocol must not notice
_KEPT = 200


@dataclass(frozen=True)
class Sample:
    """The beginning of one frame. to: "server" or "you"."""

    number: int
    to: str
    size: int
    phase: str
    operation: str
    hex: str


class Wire:
    """Watches the sessions of a proxy. Written by their threads, read by the web server's."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._samples: deque[Sample] = deque(maxlen=_KEPT)
        self._next = {"server": 0.0, "you": 0.0}
        self._count = 0
        self.bytes = {"server": 0, "you": 0}
        self.frames = {"server": 0, "you": 0}

    def watch(self, client: Client) -> None:
        """Look at everything that this session sends and receives from now on."""
        client.channel.tap_sent = lambda view: self._note(client, "server", view)
        client.channel.tap = lambda view: self._note(client, "you", view)

    def since(self, number: int) -> dict[str, Any]:
        """Samples after `number`, and the totals."""
        with self._lock:
            samples = [asdict(sample) for sample in self._samples if sample.number > number]
            return {"samples": samples, "bytes": dict(self.bytes), "frames": dict(self.frames)}

    def _note(self, client: Client, to: str, view: memoryview) -> None:
        self.bytes[to] += len(view)
        self.frames[to] += 1
        now = monotonic()
        if now < self._next[to] or not len(view):
            return
        self._next[to] = now + _INTERVAL
        phase, operation = client.ledger.place
        # The key of a saved session is for the server's eyes only, not for all programs of this machine.
        shown = b"" if phase == "keep" else bytes(view[:_SHOWN])
        with self._lock:
            self._count += 1
            self._samples.append(Sample(self._count, to, len(view), phase, operation, shown.hex()))
