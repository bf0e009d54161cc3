"""`bench e2e --engine scx`: time to the first token and per token beside plaintext, in one run.

A server in a process of its own, TLS over the loopback interface. Plaintext is the float32 model in the
client's process, token by token in turn with the engine, so that both find the machine alike. Noise and
masks are made before and counted as preparation. Both sides compute in the library that SOTTOVOCE_SCX_ARRAYS
names, plaintext in NumPy.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.bench.cost import agreement, size
from sottovoce.bench.machine import header
from sottovoce.bench.parties import peak_memory
from sottovoce.bench.served import ServerProcess
from sottovoce.bench.text import sample_tokens
from sottovoce.engines.base import EngineOptions, Progress
from sottovoce.engines.scx.arrays import VARIABLE
from sottovoce.errors import UsageError
from sottovoce.models import Model, load_model
from sottovoce.net import LedgerRow
from sottovoce.net.ledger import diff

_FIRSTS, _SHORT = 5, 64  # a short prompt is passed so often, for the median


def run(
    model: str,
    profile: str,
    context: int,
    new_tokens: int,
    text: str | Path | None = None,
    repeat: int = 1,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Medians over `repeat` sessions with fresh keys. context: tokens of the prompt, all of them private."""
    plain = load_model(model)
    _, tokens = sample_tokens(plain, context + new_tokens, text)
    if len(tokens) > plain.config.context_length:
        raise UsageError(
            f"{len(tokens)} tokens do not fit the model's context of {plain.config.context_length}"
        )
    with ServerProcess(EngineOptions(engine="scx", profile=profile), model) as server:
        sessions = []
        for number in range(max(1, repeat)):
            progress(number, max(1, repeat), "sessions")
            sessions.append(_session(server, plain, profile, tokens, context))
        progress(len(sessions), len(sessions), "sessions")
        memory = {"client": peak_memory(), "server": server.memory()}
    return {
        **header(),
        "parameters": {"profile": profile, "arithmetic": "float32" if profile == "paper" else "float64"},
        "model": model,
        "engine": "scx",
        "profile": profile,
        "arrays": os.environ.get(VARIABLE) or "numpy",
        "kv": None,
        "context": context,
        "new_tokens": new_tokens,
        "prepared": 0,
        "repeat": len(sessions),
        "text": None if text is None else Path(text).name,
        **_summary(sessions),
        "peak_memory_bytes": memory,
    }


@dataclass
class _Session:
    """What was measured: seconds, and per decoded token the client's ledger and both parties' CPU seconds."""

    setup: LedgerRow | None = None
    setup_seconds: float = 0.0
    preparation: float = 0.0
    prepared: int = 0
    first: float = 0.0
    plain_first: float = 0.0
    first_bytes: int = 0
    seconds: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    rows: list[list[LedgerRow]] = field(default_factory=list)
    cpu: list[tuple[float, float]] = field(default_factory=list)
    logits: list[npt.NDArray[np.float64]] = field(default_factory=list)
    reference: list[npt.NDArray[np.float32]] = field(default_factory=list)


def _session(
    server: ServerProcess, plain: Model, profile: str, tokens: Sequence[int], context: int
) -> _Session:
    found = _Session()
    start = time.perf_counter()
    with server.connect() as client:
        client.setup()
        found.setup_seconds, found.setup = time.perf_counter() - start, client.ledger.total("setup")
        # As many rows as a stock may sensibly hold; a longer prompt has its noise made on the way.
        found.prepared = min(len(tokens), 64) if profile == "hardened" else len(tokens)
        found.preparation = _timed(lambda: client.prepare(found.prepared))[0]
        # A token each before, untimed: both sides have touched their weights.
        plain.forward(tokens[:1])
        client.prefill((), tokens[:1])
        firsts, plain_firsts = [], []
        for _ in range(_FIRSTS if context <= _SHORT else 1):
            client.truncate(0)
            client.prepare(found.prepared)  # what the pass before has used up
            cache = plain.new_cache()
            seconds, first = _timed(lambda: plain.forward(tokens[:context], cache, last_only=True)[-1])  # noqa: B023
            plain_firsts.append(seconds)
            before = client.ledger.snapshot()
            seconds, logits = _timed(lambda: client.prefill((), tokens[:context]))
            firsts.append(seconds)
            found.first_bytes = sum(map(size, diff(before, client.ledger.snapshot())))
        found.first, found.plain_first = statistics.median(firsts), statistics.median(plain_firsts)
        found.logits.append(logits)
        found.reference.append(first)
        client.prepare(found.prepared)
        for token in tokens[context:]:
            seconds, reference = _timed(lambda token=token: plain.forward([token], cache)[-1])  # type: ignore[misc]
            found.plain.append(seconds)
            before, busy = client.ledger.snapshot(), (time.process_time(), server.cpu())
            seconds, logits = _timed(lambda token=token: client.decode(token))  # type: ignore[misc]
            found.seconds.append(seconds)
            found.cpu.append((time.process_time() - busy[0], server.cpu() - busy[1]))
            found.rows.append(diff(before, client.ledger.snapshot()))
            found.logits.append(logits)
            found.reference.append(reference)
    return found


def _timed(step: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    value = step()
    return time.perf_counter() - start, value


def _summary(sessions: Sequence[_Session]) -> dict[str, Any]:
    median = statistics.median
    online = median(s for one in sessions for s in one.seconds)
    preparation = median(one.preparation / max(1, one.prepared) for one in sessions)
    rows = [row for one in sessions for row in one.rows]
    plain = median(s for one in sessions for s in one.plain)
    first, plain_first = median(one.first for one in sessions), median(one.plain_first for one in sessions)
    logits = np.stack([x for one in sessions for x in one.logits])
    reference = np.stack([x for one in sessions for x in one.reference])
    traffic = median(sum(map(size, row)) for row in rows)
    return {
        "seconds_per_token": online + preparation,
        "online_seconds_per_token": online,
        "preparation_seconds_per_token": preparation,
        "plain_seconds_per_token": plain,
        "ratio_per_token": online / plain,
        "first_token_seconds": first,
        "plain_first_token_seconds": plain_first,
        "ratio_first_token": first / plain_first,
        "first_token_bytes": sessions[0].first_bytes,
        "bytes_per_token": traffic,
        "online_bytes_per_token": traffic,
        "rounds_per_token": median(sum(r.rounds for r in row) for row in rows),
        "cpu_seconds_per_token": {
            "client": median(c for one in sessions for c, _ in one.cpu),
            "server": median(s for one in sessions for _, s in one.cpu),
        },
        "preparation_batch": sessions[0].prepared,
        "setup_seconds": sessions[0].setup_seconds,
        # With the weights of the session before.
        "setup_again_seconds": None if len(sessions) < 2 else median(s.setup_seconds for s in sessions[1:]),
        "setup_bytes": 0 if sessions[0].setup is None else size(sessions[0].setup),
        "largest_difference": float(np.abs(logits - reference).max()),
        **agreement(reference, logits),
        "by_operation": _by_operation(rows),
    }


def _by_operation(tokens: Sequence[Sequence[LedgerRow]]) -> list[dict[str, Any]]:
    """Mean cost of each operation per token at the client, the most seconds first."""
    sums: dict[tuple[str, str], list[float]] = {}
    for rows in tokens:
        for row in rows:
            entry = sums.setdefault((row.phase, row.operation or "(other)"), [0.0, 0.0, 0.0])
            for i, value in enumerate((row.seconds, size(row), row.rounds)):
                entry[i] += value / len(tokens)
    table = [
        {"name": name, "phase": phase, "seconds": seconds, "bytes": count, "rounds": rounds}
        for (phase, name), (seconds, count, rounds) in sums.items()
    ]
    return sorted(table, key=lambda entry: -float(str(entry["seconds"])))
