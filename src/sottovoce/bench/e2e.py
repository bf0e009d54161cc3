"""Decode of a private token, end to end: two processes over TLS on this machine, everything counted.

To reach a context without waiting for its prefill, both parties append freshly shared keys and values of the
plaintext model's run of that text, through the engine's own `append` (encryption included), untimed. What
is measured then is exactly what a session does.
"""

from __future__ import annotations

import multiprocessing
import resource
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.bench.machine import header
from sottovoce.bench.text import sample_tokens
from sottovoce.engines.base import EngineOptions
from sottovoce.errors import UsageError
from sottovoce.models import load_model
from sottovoce.models.quantize import public_keys_values
from sottovoce.mpc import field
from sottovoce.net import Role, SocketChannel
from sottovoce.net.ledger import LedgerRow, total
from sottovoce.net.tls import Certificate, wrap_client, wrap_server
from sottovoce.ring.primes import P_FIELD

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Job:
    """What both processes are told. public, private: tokens cached before the measured ones."""

    options: EngineOptions
    model: str
    public: tuple[int, ...]
    private: tuple[int, ...]
    measured: tuple[int, ...]
    directory: str
    fill: bool
    round_trip_ms: float = 0.0
    mbit: float = 0.0


def run(
    model: str = "smollm2-135m",
    engine: str = "hybrid",
    kv: str = "ciphertext",
    context: int = 64,
    new_tokens: int = 4,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Seconds, bytes and rounds per generated token (medians), by operation; see docs/benchmarks."""
    if engine != "hybrid":
        raise UsageError(f"bench e2e measures the hybrid engine; for {engine!r} use `generate --json`")
    plain = load_model(model)
    public, text = sample_tokens(plain, context + new_tokens)
    with tempfile.TemporaryDirectory(prefix="sottovoce-bench-") as directory:
        job = Job(
            EngineOptions(engine=engine, kv=kv),
            model,
            tuple(public),
            tuple(text[:context]),
            tuple(text[context:]),
            directory,
            fill=kv != "none",
        )
        reference = plain.forward(np.asarray([*public, *text]))[len(public) + context :]
        del plain
        client, server = measure(job, progress)
    return summary(job, client, server, reference)


def measure(job: Job, progress: Progress) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a job in two fresh processes; what each of them reports."""
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    parties = [context.Process(target=_party, args=(role, job, results), daemon=True) for role in Role]
    for process in parties:
        process.start()
    reports: dict[int, dict[str, Any]] = {}
    try:
        while len(reports) < 2:
            try:
                role, kind, value = results.get(timeout=1.0)
            except Exception:  # noqa: BLE001  (queue.Empty: look whether both still live)
                if any(p.exitcode not in (None, 0) for p in parties):
                    raise UsageError(
                        "bench e2e: one of the two processes died; see its message above"
                    ) from None
                continue
            if kind == "progress":
                progress(*value)
            else:
                reports[role] = value
    finally:
        for process in parties:
            process.join(timeout=10.0)
            process.terminate()
    return reports[Role.CLIENT], reports[Role.SERVER]


def _party(role: Role, job: Job, results: Any) -> None:
    channel = _connect(role, job)
    if role is Role.SERVER:
        report = _serve(channel, job)
    else:
        report = _ask(channel, job, lambda *step: results.put((role, "progress", step)))
    report["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    results.put((role, "report", report))


def _connect(role: Role, job: Job) -> SocketChannel:
    """TLS over TCP on the loopback interface; the port travels in a file."""
    port_file = Path(job.directory) / "port"
    if role is Role.SERVER:
        certificate = Certificate(Path(job.directory))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            partial = port_file.with_suffix(".part")
            partial.write_text(f"{listener.getsockname()[1]} {certificate.fingerprint}")
            partial.rename(port_file)
            accepted, _ = listener.accept()
        return SocketChannel(role, wrap_server(accepted, certificate.context()))
    while not port_file.exists():
        time.sleep(0.05)
    port, fingerprint = port_file.read_text().split()
    sock, _, _ = wrap_client(
        socket.create_connection(("127.0.0.1", int(port))), "127.0.0.1", int(port), fingerprint, 600.0
    )
    return SocketChannel(role, sock)


def _serve(channel: SocketChannel, job: Job) -> dict[str, Any]:
    from sottovoce.engines.hybrid import HybridEngine

    engine = HybridEngine(job.options, load_model(job.model))
    engine.prepare()
    channel.send(b"ready")
    party = engine.session()
    party.setup(channel)
    execution = party.execution
    execution.append_public(len(job.public), engine.prefix(job.public))
    if job.fill:
        _fill(execution, job, channel.role)
    else:
        party.prefill([], len(job.private))
    cpu = []
    for _ in job.measured:
        start = time.process_time()
        with channel.ledger.phase("decode"):
            party.decode()
        cpu.append(time.process_time() - start)
    return {"cpu_seconds": cpu}


def _ask(channel: SocketChannel, job: Job, progress: Progress) -> dict[str, Any]:
    from sottovoce.engines.hybrid import HybridDataParty
    from sottovoce.engines.public import PublicModel
    from sottovoce.models.quantize import quantize

    public = PublicModel.of(quantize(load_model(job.model))).to_json()
    channel.recv(5)
    party = HybridDataParty(job.options, public)
    progress(0, len(job.measured), "setup")
    with channel.ledger.phase("setup"):
        party.setup(channel)
    execution = party.execution
    with channel.ledger.phase("prefill"):
        execution.append_public(len(job.public), None)
        if job.fill:
            _fill(execution, job, channel.role)
        else:
            party.prefill([], job.private)
    setup = channel.ledger.total("setup")
    seconds, cpu, rows, logits = [], [], [], []
    for step, token in enumerate(job.measured):
        progress(step, len(job.measured), "decode")
        before, start, busy = channel.ledger.snapshot(), time.perf_counter(), time.process_time()
        with channel.ledger.phase("decode"):
            logits.append(party.decode(token))
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - busy)
        rows.append(channel.ledger.since(before))
    progress(len(job.measured), len(job.measured), "decode")
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "rows": rows,
        "logits": logits,
        "setup_bytes": setup.wire_up + setup.wire_down,
        "setup_seconds": setup.seconds,
    }


def _fill(execution: Any, job: Job, role: Role) -> None:
    """Append real keys and values of the private text, shared afresh, as if their tokens had been decoded."""
    keys, values = public_keys_values(load_model(job.model), [*job.public, *job.private])
    rng = np.random.default_rng(0)  # the same at both parties; bench inputs only
    n = len(job.public)
    for cache, k, v in zip(execution.caches, keys[:, n:], values[:, n:], strict=True):
        cache.append(_share(k, rng, role), _share(v, rng, role))
    execution.length += len(job.private)


def _share(values: npt.NDArray[np.int64], rng: np.random.Generator, role: Role) -> npt.NDArray[np.uint64]:
    client = rng.integers(0, P_FIELD, values.shape, dtype=np.uint64)
    return client if role is Role.CLIENT else field.sub(field.from_signed(values, P_FIELD), client, P_FIELD)


def summary(
    job: Job, client: dict[str, Any], server: dict[str, Any], reference: npt.NDArray[np.float32]
) -> dict[str, Any]:
    tokens = len(job.measured)
    totals = [total(rows) for rows in client["rows"]]
    prepared = [total([row for row in rows if _is_preparation(row)]) for rows in client["rows"]]
    size = [row.wire_up + row.wire_down for row in totals]
    ahead = [row.wire_up + row.wire_down for row in prepared]
    seconds = client["seconds"]
    agreement = [
        int(np.argmax(x)) == int(np.argmax(r)) for x, r in zip(client["logits"], reference, strict=True)
    ]
    return {
        **header(),
        "model": job.model,
        "engine": job.options.engine,
        "kv": job.options.kv,
        "context": len(job.private),
        "public_tokens": len(job.public),
        "new_tokens": tokens,
        "seconds_per_token": median(seconds),
        "online_seconds_per_token": median(s - row.seconds for s, row in zip(seconds, prepared, strict=True)),
        "preparation_seconds_per_token": median(row.seconds for row in prepared),
        "bytes_per_token": median(size),
        "online_bytes_per_token": median(s - a for s, a in zip(size, ahead, strict=True)),
        "rounds_per_token": median(row.rounds for row in totals),
        "cpu_seconds_per_token": {
            "client": median(client["cpu_seconds"]),
            "server": median(server["cpu_seconds"]),
        },
        "peak_memory_bytes": {
            "client": client["peak_memory_bytes"],
            "server": server["peak_memory_bytes"],
        },
        "setup_seconds": client["setup_seconds"],
        "setup_bytes": client["setup_bytes"],
        "top1_agreement": sum(agreement) / tokens,
        "mean_kl": float(np.mean([kl(r, x) for x, r in zip(client["logits"], reference, strict=True)])),
        "preparation_batch": None,
        "by_operation": by_operation(client["rows"]),
    }


def kl(reference: npt.NDArray[Any], logits: npt.NDArray[Any]) -> float:
    """KL(reference || logits) in nats, from two rows of logits."""
    p, q = _log_softmax(reference), _log_softmax(logits)
    return float(np.sum(np.exp(p) * (p - q)))


def by_operation(tokens: Sequence[Sequence[LedgerRow]]) -> list[dict[str, Any]]:
    """Mean cost of each operation per token, the most seconds first."""
    sums: dict[tuple[str, str], LedgerRow] = {}
    for rows in tokens:
        for row in rows:
            sums.setdefault((row.phase, row.operation), LedgerRow(row.phase, row.operation)).add(row)
    table = [
        {
            "name": row.operation or "(other)",
            "phase": row.phase,
            "seconds": row.seconds / len(tokens),
            "bytes": (row.wire_up + row.wire_down) / len(tokens),
            "rounds": row.rounds / len(tokens),
        }
        for row in sums.values()
    ]
    return sorted(table, key=lambda entry: -float(entry["seconds"]))


def _is_preparation(row: LedgerRow) -> bool:
    return "correlations" in row.operation.split("/")


def _log_softmax(x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    shifted = x.astype(np.float64) - float(x.max())
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))
