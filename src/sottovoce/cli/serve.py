"""`sottovoce serve`: one model, many sessions."""

import json
import os
import signal
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import click

from ..engines.registry import KV_STRATEGIES
from .dealer import connector, dealer_option
from .options import option, quiet_option, stack
from .scx import check_accepted, say_statement, start_worker
from .scx import serve_options as scx_options

_GRACE = 30.0

network_options = stack(
    option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 for every interface."),
    option(
        "--port", type=click.IntRange(0, 65535), default=7443, help="Port to listen on; 0 picks a free one."
    ),
    option("--insecure-plaintext", is_flag=True, help="No TLS. Only for benchmarks on one machine."),
    option("--max-sessions", type=click.IntRange(1), default=8, help="Sessions at the same time."),
    option(
        "--idle-timeout",
        type=click.FloatRange(1),
        default=1800.0,
        help="Seconds until a silent client is dropped.",
    ),
)
pool_options = stack(
    option("--no-pools", is_flag=True, help="Keep no prepared material for clients."),
    option(
        "--pool-limit",
        type=click.FloatRange(0.001),
        default=4.0,
        help="Gigabytes of prepared material at most, for each client.",
    ),
    option(
        "--pools-total",
        type=click.FloatRange(0.001),
        default=64.0,
        help="Gigabytes of prepared material at most, for all clients together.",
    ),
)
audit_options = stack(
    option(
        "--ready-file",
        type=click.Path(),
        help="Write address, fingerprint and process id there once listening.",
    ),
    option(
        "--report-file", type=click.Path(), help="Append one line of JSON about every session that ended."
    ),
    option(
        "--record-received", type=click.Path(), help="Append size and first bytes of every frame received."
    ),
    option("--stop-with-parent", is_flag=True, hidden=True),
)


@click.command()
@click.argument("model")
@option(
    "--engine",
    type=click.Choice(["hybrid", "scx", "clear"]),
    default="hybrid",
    help="How the model is executed.",
)
@option(
    "--kv",
    type=click.Choice(KV_STRATEGIES),
    default="ciphertext",
    help="hybrid: how keys and values are kept.",
)
@option(
    "--arithmetic", type=click.Choice(["float", "fixed"]), default="float", help="clear: kind of numbers."
)
@scx_options
@network_options
@dealer_option
@pool_options
@audit_options
@quiet_option
def serve(
    model: str,
    engine: str,
    kv: str,
    arithmetic: str,
    profile: str,
    accept_statistical_privacy: bool,
    worker: int | None,
    host: str,
    port: int,
    insecure_plaintext: bool,
    max_sessions: int,
    idle_timeout: float,
    insecure_dealer: str | None,
    no_pools: bool,
    pool_limit: float,
    pools_total: float,
    ready_file: str | None,
    report_file: str | None,
    record_received: str | None,
    stop_with_parent: bool,
    quiet: bool,
) -> None:
    """Serve MODEL (a name that `sottovoce models` lists, or a path) to clients that keep their prompts to
    themselves.

    Ctrl-C or SIGTERM stops: idle sessions end at once, busy ones after the step they are at; a second one at
    once.
    """
    from .console import Console

    console = Console(quiet)
    check_accepted(engine, accept_statistical_privacy)
    if worker is not None and engine != "scx":
        raise click.UsageError("--worker belongs to --engine scx")
    console.note(f"sottovoce serve: loading {model} …")
    hosted = _Hosted(console, model, engine, kv, arithmetic, profile, connector(insecure_dealer))
    if engine == "hybrid" and not no_pools:
        hosted.keep_pools(int(pool_limit * 1e9), int(pools_total * 1e9))
    server = hosted.listen(
        host,
        port,
        insecure_plaintext,
        max_sessions,
        idle_timeout,
        Journal(report_file),
        Recorder(record_received),
    )
    stop_on_signals(server, console)
    if ready_file:
        write_ready(Path(ready_file), server.host, server.port, hosted.fingerprint)
    if stop_with_parent:
        threading.Thread(target=watch_parent, args=(server,), daemon=True).start()
    if worker is not None:
        start_worker((server.host, server.port), host, worker, hosted.fingerprint, ready_file)
    server.serve_forever()
    console.note("stopping: waiting for busy sessions to finish their step (Ctrl-C again to cut them off)")
    if not server.wait(_GRACE):
        console.note("some sessions were cut off")


class _Hosted:
    """A model made ready for an engine, and the lines that say so."""

    def __init__(
        self, console: Any, model: str, engine: str, kv: str, arithmetic: str, profile: str, dealer: Any
    ) -> None:
        from ..engines.base import EngineOptions
        from ..engines.registry import make_engine
        from ..models import load_model

        self.console = console
        start = time.perf_counter()
        self.dealer = dealer
        correlations = "pair" if dealer is None else "dealer"
        loaded = load_model(model)
        profile = profile if engine == "scx" else "none"
        self.engine = make_engine(EngineOptions(engine, kv, arithmetic, correlations, profile), loaded)
        self.engine.prepare(console.progress)
        self.card = loaded.card
        self.fingerprint: str | None = None
        self.shelf: Any = None
        from .console import seconds_text

        console.note(f"{self.card.name}: ready after {seconds_text(time.perf_counter() - start)}")

    def keep_pools(self, limit: int, total: int) -> None:
        """Keep prepared material for clients between their sessions: bytes for each, and for all."""
        from ..parties import server_shelf
        from ..parties.paths import pools_dir

        self.engine.keep_in(pools_dir() / "hints")
        self.shelf = server_shelf(pools_dir() / "clients", self._welcome(), limit, total)
        evicted = self.shelf.evict()
        if evicted:
            self.console.note(f"deleted the prepared material of {evicted} clients that did not come back")

    def _open_party(self) -> Any:
        party = self.engine.session()
        party.shelf, party.dealer = self.shelf, self.dealer
        return party

    def _welcome(self) -> Any:
        from ..parties import Welcome

        return Welcome(self.engine.options, self.engine.public(), self.card)

    def listen(
        self,
        host: str,
        port: int,
        plaintext: bool,
        max_sessions: int,
        idle_timeout: float,
        journal: "Journal",
        recorder: "Recorder",
    ) -> Any:
        from ..engines.explain import (
            CLEAR_BANNER,
            DEALER_BANNER,
            PLAINTEXT_BANNER,
            engine_line,
            what_the_server_sees,
        )
        from ..net.tls import Certificate
        from ..parties import Server
        from ..parties.paths import server_key_dir

        note = self.console.note
        certificate = None if plaintext else Certificate(server_key_dir())
        self.fingerprint = certificate.fingerprint if certificate else None

        def closed(report: Any) -> None:
            recorder.flush()
            journal.write(report)
            tokens = f"{report.public_tokens} public and {report.private_tokens} private tokens"
            note(
                f"session {report.id} from {report.peer} ended: {report.ended} "
                f"({tokens}, {report.seconds:.1f} s)"
            )

        server = Server(
            self._open_party,
            self._welcome(),
            host=host,
            port=port,
            tls=certificate.context() if certificate else None,
            max_sessions=max_sessions,
            idle_timeout=idle_timeout,
            on_open=lambda s: note(f"session {s.report.id} from {s.report.peer} opened"),
            on_close=closed,
            tap=recorder.write if recorder.path else None,
        )
        options = self.engine.options
        note(engine_line(options))
        note(what_the_server_sees(options))
        if options.engine == "clear":
            self.console.warn(CLEAR_BANNER)
        say_statement(self.console, options, self.engine.public())
        if options.correlations == "dealer":
            self.console.warn(DEALER_BANNER)
        if plaintext:
            self.console.warn(PLAINTEXT_BANNER)
        else:
            note(f"TLS certificate {self.fingerprint}")
        note(f"model commitment {self.card.model_digest}")
        note(f"listening on {host}:{server.port}")
        return server


class Journal:
    """One line of JSON per ended session."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._lock = threading.Lock()

    def write(self, report: Any) -> None:
        if self._path:
            with self._lock, _append(self._path) as file:
                file.write(json.dumps(asdict(report)) + "\n")


class Recorder:
    """One line of JSON per received frame: session, size, first 32 bytes in hexadecimal."""

    def __init__(self, path: str | None) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file = _append(path) if path else None

    def write(self, session: str, view: memoryview) -> None:
        if self._file:
            entry = {"session": session, "size": len(view), "first": bytes(view[:32]).hex()}
            with self._lock:
                self._file.write(json.dumps(entry) + "\n")

    def flush(self) -> None:
        if self._file:
            with self._lock:
                self._file.flush()


def _append(path: str) -> IO[str]:
    """Addresses of clients, sizes, and with engine `clear` their tokens: for the owner's eyes (mode 0600)."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a")


def stop_on_signals(server: Any, console: Any) -> None:
    """First SIGINT or SIGTERM: stop politely. Second: at once."""

    def handle(number: int, frame: Any) -> None:
        if stopping:
            os._exit(130 if number == signal.SIGINT else 143)
        stopping.append(number)
        server.stop()

    stopping: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)


def write_ready(path: Path, host: str, port: int, fingerprint: str | None) -> None:
    """Say where a server listens. Atomically: whoever waits for the file never reads half of it."""
    temporary = path.with_suffix(".part")
    temporary.write_text(
        json.dumps({"host": host, "port": port, "fingerprint": fingerprint, "pid": os.getpid()})
    )
    temporary.replace(path)


def watch_parent(server: Any) -> None:
    """A server that was started by `demo` must not outlive it."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(1.0)
    server.stop()
    time.sleep(5.0)
    os._exit(1)
