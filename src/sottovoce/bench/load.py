"""Many sessions at once: whether they finish together, and whether a server gives back what they took.

One server process, a process for every client, TLS between them, the tiny model or a real one. All clients
set up first, then all answer from the same moment on: once, or as often as it takes a while. A slow client,
if asked for, sleeps between its tokens: the others must not wait for it. Then short sessions follow one
another, and memory is read after each.
"""

from __future__ import annotations

import math
import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.bench.machine import header
from sottovoce.bench.served import options_of, wish_of
from sottovoce.engines.base import Progress
from sottovoce.engines.registry import make_engine
from sottovoce.models.registry import load_model
from sottovoce.models.tiny import tiny_model
from sottovoce.net.tls import Certificate
from sottovoce.parties import Address, Client, Server, Welcome
from sottovoce.parties.fair import FairGate
from sottovoce.parties.metrics import resident_memory_bytes

_PROMPT = [3, 31, 8, 12]
_PATIENCE = 600.0
# Seconds that the answers of one session take alone, at least: below it, who was started first has won.
_LEAST = 2.0
TINY = "tiny"


def run(
    sessions: int = 8,
    tokens: int = 16,
    kv: str = "masked",
    model: str = TINY,
    after: int = 50,
    slow: bool = True,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """sessions: at the same time. after: short ones, one after the other. slow: a client more that dawdles.

    Result: seconds of each session from the common start, their ratio, seconds of one session alone, memory.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory(prefix="sottovoce-load-") as directory:
        server = context.Process(
            target=_serve, args=(theirs, directory, model, kv, sessions + 2), daemon=True
        )
        server.start()
        try:
            port, fingerprint = _received(ours)
            where = (port, fingerprint, kv)
            progress(0, 3, "one session alone")
            alone = _together(context, where, [(tokens, 1, 0.0)])[0]
            progress(1, 3, f"{sessions} sessions")
            answers = math.ceil(_LEAST / alone)
            jobs = [(tokens, answers, 0.0)] * sessions + [(3, 1, 1.0)] * slow
            seconds = _together(context, where, jobs)[:sessions]
            progress(2, 3, f"{after} sessions, one after the other")
            memory = _one_after_the_other(ours, where, after)
            progress(3, 3, "load")
        finally:
            server.kill()
            server.join()
    half = len(memory) // 2
    return {
        "model": model,
        "kv": kv,
        "sessions": sessions,
        "tokens": tokens * answers,
        "seconds": [round(s, 3) for s in seconds],
        "ratio": max(seconds) / min(seconds),
        "seconds_alone": alone * answers,
        "throughput": sessions * tokens * answers / max(seconds),
        "throughput_alone": tokens / alone,
        "sessions_after": after,
        "memory_first": memory[0] if memory else None,
        "memory_half": memory[half] if memory else None,
        "memory_last": memory[-1] if memory else None,
        "growth_per_session": (memory[-1] - memory[half]) / (len(memory) - half) if len(memory) > 1 else None,
        **header(),
    }


def _serve(pipe: Connection, directory: str, name: str, kv: str, places: int) -> None:
    """The server's process: says where it is, then how much memory it has whenever asked."""
    from os import cpu_count

    model = tiny_model() if name == TINY else load_model(name)
    options = options_of(kv)
    engine = make_engine(options, model)
    engine.prepare()
    certificate = Certificate(Path(directory))
    welcome = Welcome(options, engine.public(), model.card)
    gate = FairGate(cpu_count() or 1)
    tls = certificate.context()
    with Server(engine.session, welcome, tls=tls, max_sessions=places, gate=gate) as server:
        pipe.send((server.port, certificate.fingerprint))
        while pipe.recv():
            while server.sessions:
                time.sleep(0.01)
            pipe.send(resident_memory_bytes())


def _client(pipe: Connection, where: tuple[int, str, str], tokens: int, answers: int, pause: float) -> None:
    """A client's process: sets up, waits for the word, and says how long its answers took."""
    port, fingerprint, kv = where
    wish = wish_of(options_of(kv))
    with Client.connect(Address("127.0.0.1", port), wish, fingerprint) as client:
        client.setup()
        pipe.send("ready")
        pipe.recv()
        start = time.perf_counter()
        for _ in range(answers):
            client.truncate(0)
            _answer(client, tokens, pause)
        pipe.send(time.perf_counter() - start)


def _answer(client: Client, tokens: int, pause: float = 0.0) -> None:
    logits = client.prefill((), _PROMPT)
    for _ in range(tokens - 1):
        time.sleep(pause)
        logits = client.decode(int(np.argmax(logits)))


def _together(context: Any, where: tuple[int, str, str], jobs: list[tuple[int, int, float]]) -> list[float]:
    """Seconds of each client, all started at the same moment."""
    pipes, processes = [], []
    try:
        for job in jobs:
            ours, theirs = context.Pipe()
            processes.append(context.Process(target=_client, args=(theirs, where, *job), daemon=True))
            processes[-1].start()
            pipes.append(ours)
        for pipe in pipes:
            _received(pipe)
        for pipe in pipes:
            pipe.send("go")
        return [_received(pipe) for pipe in pipes]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _one_after_the_other(pipe: Connection, where: tuple[int, str, str], count: int) -> list[float]:
    """The server's memory after each of `count` short sessions."""
    port, fingerprint, kv = where
    wish = wish_of(options_of(kv))
    memory = []
    for _ in range(count):
        with Client.connect(Address("127.0.0.1", port), wish, fingerprint) as client:
            client.setup()
            _answer(client, 2)
        pipe.send(True)
        memory.append(_received(pipe))
    return memory


def _received(pipe: Connection) -> Any:
    if not pipe.poll(_PATIENCE):
        raise TimeoutError("a process of the load test has stopped answering")
    return pipe.recv()
