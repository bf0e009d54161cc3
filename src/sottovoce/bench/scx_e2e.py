"""`bench e2e --engine scx`: time to the first token and per token beside plaintext, in one run.

A server in a process of its own, TLS over the loopback interface. Plaintext is the float32 model in the
client's process, token by token in turn with the engine, so that both find the machine alike. Noise and
masks are made before and counted as preparation.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
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
from sottovoce.bench.text import sample_tokens
from sottovoce.engines.base import EngineOptions, Progress
from sottovoce.engines.scx import ScxEngine
from sottovoce.errors import UsageError
from sottovoce.models import Model, load_model
from sottovoce.net import LedgerRow
from sottovoce.net.ledger import diff
from sottovoce.net.tls import Certificate
from sottovoce.parties import Address, Client, Server, Welcome, Wish

_PATIENCE = 600.0


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
    with _ServerProcess(model, profile) as server:
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
    server: _ServerProcess, plain: Model, profile: str, tokens: Sequence[int], context: int
) -> _Session:
    found, cache = _Session(), plain.new_cache()
    start = time.perf_counter()
    with server.connect(profile) as client:
        client.setup()
        found.setup_seconds, found.setup = time.perf_counter() - start, client.ledger.total("setup")
        # As many rows as a stock may sensibly hold; a longer prompt has its noise made on the way.
        found.prepared = min(len(tokens), 64) if profile == "hardened" else len(tokens)
        found.preparation = _timed(lambda: client.prepare(found.prepared))[0]
        found.plain_first, first = _timed(lambda: plain.forward(tokens[:context], cache, last_only=True)[-1])
        before = client.ledger.snapshot()
        found.first, logits = _timed(lambda: client.prefill((), tokens[:context]))
        found.first_bytes = sum(map(size, diff(before, client.ledger.snapshot())))
        found.logits.append(logits)
        found.reference.append(first)
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
        "setup_seconds": median(one.setup_seconds for one in sessions),
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


class _ServerProcess:
    """The engine behind a socket, in a fresh process."""

    def __init__(self, model: str, profile: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._directory = tempfile.TemporaryDirectory(prefix="sottovoce-bench-")
        parent, child = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(model, profile, self._directory.name, child), daemon=True
        )
        self._process.start()
        if not parent.poll(_PATIENCE):
            raise UsageError("the benchmark's server did not come up")
        self._port, self._fingerprint = parent.recv()

    def connect(self, profile: str) -> Client:
        wish = Wish("scx", profile=profile)
        return Client.connect(Address("127.0.0.1", self._port), wish, self._fingerprint)

    def cpu(self) -> float:
        """CPU seconds of the process so far, all threads."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    def __enter__(self) -> _ServerProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._process.join()
        self._directory.cleanup()


def _serve(model: str, profile: str, directory: str, pipe: Any) -> None:
    engine = ScxEngine(EngineOptions(engine="scx", profile=profile), load_model(model))
    engine.prepare()
    certificate = Certificate(Path(directory))
    welcome = Welcome(engine.options, engine.public(), engine.model.card)
    server = Server(engine.session, welcome, tls=certificate.context())
    pipe.send((server.port, certificate.fingerprint))
    server.serve_forever()
