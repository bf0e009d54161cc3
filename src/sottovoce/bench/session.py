"""A hybrid session for benchmarks: two processes over TLS on this machine that follow one list of steps.

One server process loads and encodes the model once for all steps, so several contexts, prompts or networks
cost one start-up.
"""

from __future__ import annotations

import multiprocessing
import queue
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sottovoce.bench.parties import Client, Server, peak_memory
from sottovoce.bench.shaped import ShapedChannel
from sottovoce.bench.steps import Job, Outcome, Pass
from sottovoce.engines.base import Progress
from sottovoce.errors import PeerConnectionError, ProtocolError, SottovoceError, UsageError
from sottovoce.net import Role, SocketChannel
from sottovoce.net.tls import Certificate, wrap_client, wrap_server

_LINGER = 3.0  # seconds that a party's error waits for the other's
_PATIENCE = 600.0  # seconds for the two processes to find each other

OnStep = Callable[[int, list[Pass]], None]


def run_job(
    job: Job, progress: Progress = lambda done, total, what: None, on_step: OnStep = lambda step, passes: None
) -> tuple[Outcome, Outcome]:
    """Run a job in two fresh processes: (client's outcome, server's outcome).

    on_step: called with each of the client's steps as soon as it is done. Raises what a party raised.
    """
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    outcomes: dict[Role, Outcome] = {}
    with tempfile.TemporaryDirectory(prefix="sottovoce-bench-") as directory:
        parties = [
            context.Process(target=_process, args=(role, job, directory, results), daemon=True)
            for role in Role
        ]
        for process in parties:
            process.start()
        try:
            while len(outcomes) < len(Role):
                role, kind, value = _next(results, parties)
                if kind == "error":
                    raise _reason(results, value)
                if kind == "outcome":
                    outcomes[role] = value
                elif role is Role.CLIENT and kind == "step":
                    on_step(*value)
                elif role is Role.CLIENT and kind == "progress":
                    progress(*value)
            for process in parties:
                process.join(10.0)
        finally:
            for process in parties:
                process.terminate()
    return outcomes[Role.CLIENT], outcomes[Role.SERVER]


def _reason(results: Any, first: Exception) -> Exception:
    """A party's error, unless it only says that the other one gave up: then the other one's."""
    deadline = time.monotonic() + _LINGER
    while isinstance(first, ProtocolError | PeerConnectionError) and time.monotonic() < deadline:
        try:
            _, kind, value = results.get(timeout=0.1)
        except queue.Empty:
            continue
        if kind == "error":
            return value if isinstance(value, Exception) else first
    return first


def _next(results: Any, parties: list[Any]) -> tuple[Role, str, Any]:
    while True:
        try:
            role, kind, value = results.get(timeout=1.0)
            return Role(role), kind, value
        except queue.Empty:
            codes = [process.exitcode for process in parties if process.exitcode]
            if -signal.SIGKILL in codes:
                raise UsageError("a benchmark's process was killed; most likely memory ran out") from None
            if codes:
                raise UsageError("a benchmark's process died; its own message is above") from None


def _process(role: Role, job: Job, directory: str, results: Any) -> None:
    def tell(kind: str, value: object) -> None:
        results.put((int(role), kind, value))

    try:
        channel = _connect(role, job, Path(directory))
        with channel:
            outcome = _follow(channel, job, tell)
        tell("outcome", outcome)
    except SottovoceError as error:
        tell("error", error)
    except Exception:
        tell("error", UsageError(f"the benchmark's {role.name.lower()} failed:\n{traceback.format_exc()}"))


def _follow(channel: SocketChannel, job: Job, tell: Callable[[str, object], None]) -> Outcome:
    party = Server(channel, job) if channel.role is Role.SERVER else Client(channel, job)
    for number, step in enumerate(job.steps):
        tell("progress", (number, len(job.steps), "benchmark steps"))
        passes = party.run(step)
        party.outcome.passes.append(passes)
        tell("step", (number, passes))
    tell("progress", (len(job.steps), len(job.steps), "benchmark steps"))
    party.outcome.peak_memory_bytes = max(party.outcome.peak_memory_bytes, peak_memory())
    return party.outcome


def _connect(role: Role, job: Job, directory: Path) -> SocketChannel:
    """TLS over TCP on the loopback interface; port and fingerprint travel in a file."""
    note = directory / "port"
    kind = ShapedChannel if job.shaped else SocketChannel
    if role is Role.SERVER:
        certificate = Certificate(directory)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(_PATIENCE)
            partial = note.with_suffix(".part")
            partial.write_text(f"{listener.getsockname()[1]} {certificate.fingerprint}")
            partial.rename(note)
            accepted, _ = listener.accept()
        return kind(role, wrap_server(accepted, certificate.context()))
    deadline = time.monotonic() + _PATIENCE
    while not note.exists():
        if time.monotonic() > deadline:
            raise UsageError("the benchmark's server did not come up")
        time.sleep(0.05)
    port, fingerprint = note.read_text().split()
    address = ("127.0.0.1", int(port))
    sock, _, _ = wrap_client(socket.create_connection(address), *address, fingerprint, _PATIENCE)
    return kind(role, sock)
