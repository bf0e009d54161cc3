"""A server in a process of its own, for benchmarks that time a whole session from the client."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from pathlib import Path
from typing import Any

from sottovoce.engines.base import EngineOptions
from sottovoce.engines.registry import PROFILES, make_engine
from sottovoce.errors import UsageError
from sottovoce.models import load_model
from sottovoce.net.tls import Certificate
from sottovoce.parties import Address, Client, Server, Welcome, Wish

_PATIENCE = 600.0


def options_of(kv: str) -> EngineOptions:
    """The engine that goes by the name of its cache or its profile."""
    if kv == "clear":
        return EngineOptions("clear")
    if kv in PROFILES:
        return EngineOptions("scx", profile=kv)
    return EngineOptions("hybrid", kv)


def wish_of(options: EngineOptions) -> Wish:
    """A client's that accepts this engine."""
    return Wish(options.engine, profile=options.profile)


class ServerProcess:
    """The engine behind TLS on the loopback interface, in a fresh process."""

    def __init__(self, options: EngineOptions, model: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._options = options
        self._directory = tempfile.TemporaryDirectory(prefix="sottovoce-bench-")
        self._pipe, child = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(options, model, self._directory.name, child), daemon=True
        )
        self._process.start()
        if not self._pipe.poll(_PATIENCE):
            raise UsageError("the benchmark's server did not come up")
        self._port, self._fingerprint = self._pipe.recv()

    def connect(self) -> Client:
        while self._pipe.poll():  # reports of earlier sessions that nobody asked for
            self._pipe.recv()
        return Client.connect(Address("127.0.0.1", self._port), wish_of(self._options), self._fingerprint)

    def cpu(self) -> float:
        """CPU seconds of the process so far, all threads."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Peak bytes of the process."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    def ledger(self) -> list[dict[str, Any]]:
        """The server's ledger of the session that ended last."""
        if not self._pipe.poll(_PATIENCE):
            raise UsageError("the benchmark's server did not report its session")
        rows: list[dict[str, Any]] = self._pipe.recv()
        return rows

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._process.join()
        self._directory.cleanup()


def _serve(options: EngineOptions, model: str, directory: str, pipe: Any) -> None:
    loaded = load_model(model)
    engine = make_engine(options, loaded)
    engine.prepare()
    certificate = Certificate(Path(directory))
    welcome = Welcome(engine.options, engine.public(), loaded.card, engine.context)
    server = Server(
        engine.session,
        welcome,
        tls=certificate.context(),
        on_close=lambda report: pipe.send(report.ledger),
    )
    pipe.send((server.port, certificate.fingerprint))
    server.serve_forever()
