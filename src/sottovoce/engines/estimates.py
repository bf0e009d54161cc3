"""What a session would cost, as every engine's estimator says it: work and traffic by phase, memory, keys.

Traffic and rounds do not depend on a machine, seconds do: `Phase.seconds` puts a phase on a network.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

from sottovoce.errors import UsageError


@dataclass(frozen=True)
class Network:
    """rtt_ms: round trip. mbit: bandwidth each way, 0 for one that costs nothing."""

    name: str
    rtt_ms: float = 0.0
    mbit: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Network:
        """`local`, `lan`, `wan`, or `RTT,MBIT` in milliseconds and megabits a second."""
        if text in NAMED:
            return NAMED[text]
        match = re.fullmatch(r"(\d+(?:\.\d+)?),(\d+(?:\.\d+)?)", text)
        if match is None or float(match[2]) == 0:
            raise UsageError(f"{text!r} is no network; write {', '.join(NAMED)} or RTT,MBIT such as 20,500")
        return cls(text, float(match[1]), float(match[2]))


# A connection on one machine takes about a tenth of a millisecond to wake the other process up, and back.
NAMED = {
    "local": Network("local", 0.1, 0.0),
    "lan": Network("lan", 0.5, 1000.0),
    "wan": Network("wan", 40.0, 100.0),
}


@dataclass(frozen=True)
class Phase:
    """One part of a session. compute: seconds of both parties' work where it cannot overlap, on one core.

    tokens: how many this phase covers, for figures per token. parallel: the part of compute that a server's
    cores share: rows of matrices have nothing to do with each other. elsewhere: what that part takes on a
    cluster, its network included, where bytes cross it.
    """

    name: str
    tokens: int
    bytes_up: int
    bytes_down: int
    rounds: int
    compute: float
    parallel: float = 0.0
    elsewhere: float | None = None
    cluster_bytes: int = 0

    def seconds(self, network: Network, cores: int = 1) -> float:
        """Work, waiting for round trips, and the time the bytes take."""
        rate = network.mbit * 125_000
        wire = (self.bytes_up + self.bytes_down) / rate if rate else 0.0
        parallel = self.parallel / cores if self.elsewhere is None else self.elsewhere
        compute = self.compute - self.parallel + parallel
        return compute + self.rounds * network.rtt_ms / 1e3 + wire


@dataclass(frozen=True)
class Estimate:
    """exact: bytes and rounds are those of the ledger, not approximations. Sizes in bytes.

    key_bytes: what the client sends once a session. server_memory: shared by all sessions;
    session_memory: of each one, at the server. client_disk: what `prepare` leaves there. node_memory: of each
    node of a cluster, which then holds the matrices instead of the server.
    """

    engine: str
    kv: str
    protection: str
    phases: tuple[Phase, ...]
    key_bytes: int = 0
    server_memory: int = 0
    session_memory: int = 0
    client_memory: int = 0
    client_disk: int = 0
    node_memory: int = 0
    exact: bool = True
    notes: tuple[str, ...] = field(default=())
    plan: dict[str, Any] | None = None  # fhe: what is refreshed where

    def phase(self, name: str) -> Phase | None:
        return next((phase for phase in self.phases if phase.name == name), None)

    def to_json(self, network: Network, cores: int = 1) -> dict[str, Any]:
        data = asdict(self)
        for entry, phase in zip(data["phases"], self.phases, strict=True):
            entry["seconds"] = phase.seconds(network, cores)
        return data
