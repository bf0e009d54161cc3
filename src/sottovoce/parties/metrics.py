"""What a server counts: vLLM's names where vLLM has one, `sottovoce_…` for what only this protocol has.

The server sees commands, not requests: a request begins with a prefill and lasts until the session's next
one, or its end. Numbers of tokens are known to it; nothing else of them is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from ..net.ledger import LedgerRow
from .observer import Observer
from .prometheus import Counter, Gauge, Metric, RequestMetrics
from .protocol import Verb

if TYPE_CHECKING:
    from .server import Server
    from .session import ServerSession, SessionReport

_APPENDS = (Verb.PREFILL, Verb.DECODE, Verb.VERIFY)


@dataclass
class _Request:
    """One that runs: when it began, and when its last token was made."""

    start: float
    last: float


class ServerMetrics(RequestMetrics, Observer):
    """Counts of one server; `page` is what is scraped. model: its name, a label of vLLM's metrics."""

    def __init__(self, model: str) -> None:
        label = {"model_name": model}
        super().__init__(**label)
        self._label = label
        self._requests: dict[str, _Request] = {}
        self._lock = Lock()
        self.bytes = Counter("sottovoce_bytes_total", "Bytes of frames, without TLS, after setup.")
        self.rounds = Counter("sottovoce_rounds_total", "Exchanges with clients, after setup.")
        self.operations = Counter(
            "sottovoce_operations_total", "Homomorphic operations, transfers and prepared products."
        )
        self.sessions = Counter("sottovoce_sessions_total", "Connections that ended, by how.")
        self.resumed = Counter("sottovoce_sessions_resumed_total", "Saved sessions that went on.")
        self.prepared = Counter("sottovoce_prepare_steps_total", "Steps that filled a client's pool.")
        self.failures = Counter("sottovoce_failures_total", "Failures that a session survived, by what.")

    def watch(self, server: Server, *more: Metric) -> None:
        """Take gauges from a running server. more: others to show."""
        admission, label = server.admission, self._label
        self._gauges: list[Metric] = [
            Gauge(
                "vllm:num_requests_running", "Sessions that have a place.", lambda: admission.running, **label
            ),
            Gauge("vllm:num_requests_waiting", "Clients in the queue.", lambda: admission.queued, **label),
            Gauge("sottovoce_sessions_limit", "Places for sessions.", lambda: admission.places),
            Gauge("sottovoce_connections", "Open connections.", lambda: server.sessions),
            Gauge("process_resident_memory_bytes", "Memory of this process.", resident_memory_bytes),
            *more,
        ]

    _gauges: Sequence[Metric] = ()

    def page(self, gauges: Sequence[Metric] = ()) -> str:
        return super().page([*gauges, *self._gauges])

    def opened(self, session: ServerSession) -> None:
        if session.report.resumed_tokens:
            self.resumed.add()

    def step(self, session: ServerSession, verb: Verb, tokens: int, seconds: float, cost: LedgerRow) -> None:
        self.bytes.add(cost.wire_up, direction="up")
        self.bytes.add(cost.wire_down, direction="down")
        self.rounds.add(cost.rounds)
        for name, count in cost.counters.items():
            self.operations.add(count, operation=name)
        if verb == Verb.PREPARE:
            self.prepared.add()
        if verb not in _APPENDS:
            return
        now = time.monotonic()
        if verb == Verb.PREFILL:
            self._finish(session.report.id)
            with self._lock:
                self._requests[session.report.id] = _Request(now - seconds, now)
            self.prompt_tokens.add(tokens, **self._label)
            self.first.observe(seconds)
        else:
            self.new_tokens.add(tokens, **self._label)
            self.each.observe(seconds / max(1, tokens), tokens)
            with self._lock:
                if session.report.id in self._requests:
                    self._requests[session.report.id].last = now

    def failed(self, session: ServerSession, what: str, why: str) -> None:
        self.failures.add(what=what)

    def closed(self, report: SessionReport) -> None:
        self.sessions.add(reason=_reason(report.ended))
        self._finish(report.id)

    def _finish(self, id: str) -> None:
        with self._lock:
            request = self._requests.pop(id, None)
        if request is not None:
            self.finished.add(1, **self._label)
            self.whole.observe(request.last - request.start)


def resident_memory_bytes() -> float:
    """What this process holds in memory now; 0 where the system does not say."""
    if not sys.platform.startswith("linux"):
        return 0.0
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    import resource

    return float(pages * resource.getpagesize())


def pool_gauges(size: Callable[[], float], count: Callable[[], float]) -> list[Metric]:
    """Of the clients' pools at the server: bytes of all, and how many there are."""
    return [
        Gauge("sottovoce_pool_bytes", "Prepared material of all clients.", size),
        Gauge("sottovoce_pools", "Clients with prepared material.", count),
    ]


def _reason(ended: str) -> str:
    """A word for a label: the name of an error, or how else it ended."""
    head = ended.partition(":")[0]
    return head if head.isidentifier() else "internal_error" if head.startswith("internal") else "client_left"
