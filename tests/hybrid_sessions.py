"""Hybrid sessions for tests.

Both parties in one process, real 128-bit parameters, everything received recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sottovoce.engines.base import EngineOptions
from sottovoce.engines.hybrid import HybridDataParty, HybridEngine
from sottovoce.models import Model
from sottovoce.net import Channel, memory_pair, run_pair

# Of logits up to 3 of the tiny models in tests/fixtures. Fixed point moves a logit by 0.02; what is drawn at
# random by a deviation of 0.02, by 0.03 between two sessions, in few dimensions: this is seven of them.
# A wrong mask or position gives errors of 0.4 and more.
TOLERANCE = 0.2


@dataclass
class Record:
    """What a session produced: logits after the prefill and each decoded token, and all frames received."""

    logits: list[np.ndarray] = field(default_factory=list)
    server_received: list[bytes] = field(default_factory=list)
    client_received: list[bytes] = field(default_factory=list)


_ENGINES: dict[tuple[str, str], HybridEngine] = {}


def prepared(model: Model, kv: str = "ciphertext") -> HybridEngine:
    """An engine is expensive and read-only: one for all tests of a model."""
    key = (model.digest, kv)
    if key not in _ENGINES:
        _ENGINES[key] = HybridEngine(EngineOptions(kv=kv), model)
        _ENGINES[key].prepare()
    return _ENGINES[key]


def run_session(
    engine: HybridEngine,
    public: Sequence[int],
    private: Sequence[int],
    decoded: Sequence[int] = (),
    truncate_to: int | None = None,
    observe: Any = None,
) -> Record:
    """Prefill, decode the given tokens; with `truncate_to`, forget the rest and decode them once more."""
    record = Record()

    def server(channel: Channel) -> None:
        party = engine.session()
        party.setup(channel)
        channel.tap = lambda payload: record.server_received.append(bytes(payload))
        if observe is not None:
            observe(party)
        party.prefill(public, len(private))
        for _ in decoded:
            party.decode()
        if truncate_to is not None:
            party.truncate(truncate_to)
            for _ in decoded:
                party.decode()

    def client(channel: Channel) -> None:
        party = HybridDataParty(engine.options, engine.public())
        party.setup(channel)
        channel.tap = lambda payload: record.client_received.append(bytes(payload))
        if observe is not None:
            observe(party)
        record.logits.append(party.prefill(public, private))
        record.logits += [party.decode(token) for token in decoded]
        if truncate_to is not None:
            party.truncate(truncate_to)
            record.logits += [party.decode(token) for token in decoded]

    run_pair(client, server, memory_pair())
    return record
