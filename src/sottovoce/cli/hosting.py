"""A model made ready for an engine, served, watched over; and the lines that say so."""

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

from .dealer import connector
from .journal import Journal, Recorder, append_private
from .scx import say_statement

_DAY = 86400.0


class Hosting:
    """Everything that `serve` sets up around a `Server`. flags: of the command."""

    def __init__(self, console: Any, flags: dict[str, Any]) -> None:
        from ..parties.admission import ApiKeys
        from ..parties.log import EventLog
        from ..parties.status import StatusServer

        self.console, self.flags = console, flags
        self.fingerprint: str | None = None
        self.shelf: Any = None
        self.kept: Any = None
        self.dealer = connector(flags["insecure_dealer"])
        path = flags["api_key_file"]
        self._keys = None if path is None else ApiKeys(Path(path))
        self._held = contextlib.ExitStack()
        self._writers = self._logs()
        self.events = EventLog(self._write)
        self.status: StatusServer | None = None
        if flags["metrics_port"] is not None:
            self.status = StatusServer(flags["metrics_host"], flags["metrics_port"])
            self._held.callback(self.status.close)

    @property
    def metrics_port(self) -> int | None:
        """Where /health and /metrics are, if anywhere."""
        return None if self.status is None else self.status.port

    def load(self, model: str) -> None:
        """Load and encode the model; /health says 503 until `listen`."""
        from ..engines.base import EngineOptions
        from ..engines.registry import make_engine
        from ..models import load_model
        from .console import seconds_text

        flags, start = self.flags, time.perf_counter()
        correlations = "pair" if self.dealer is None else "dealer"
        loaded = load_model(model)
        profile = flags["profile"] if flags["engine"] == "scx" else "none"
        options = EngineOptions(flags["engine"], flags["kv"], flags["arithmetic"], correlations, profile)
        self.engine = make_engine(options, loaded)
        if flags["ray"] is not None:
            self._scale_out(flags["ray"], flags["ray_teams"], flags["ray_workers"], flags["ray_cpus"])
        self.engine.prepare(self.console.progress)
        self.card = loaded.card
        self.console.note(f"{self.card.name}: ready after {seconds_text(time.perf_counter() - start)}")
        if flags["engine"] == "hybrid" and not flags["no_pools"]:
            self._keep_pools(int(flags["pool_limit"] * 1e9), int(flags["pools_total"] * 1e9))
        if flags["engine"] == "fhe" and not flags["no_pools"]:
            from ..parties.paths import pools_dir

            self.engine.keep_in(pools_dir())
        if flags["ray"] is not None:
            self._scale_out_rows()
        if not flags["no_sessions"]:
            self._keep_sessions(int(flags["sessions_limit"] * 1e9), flags["sessions_days"] * _DAY)

    def _scale_out(self, address: str, teams: int, workers: int, cpus: float) -> None:
        """Products of matrices go to a Ray cluster; before the engine is prepared."""
        from ..engines.cluster import ClusterProducts, Router
        from ..engines.cluster.ray_link import RayLink, connect
        from ..engines.hybrid import HybridEngine
        from ..errors import UsageError

        if not isinstance(self.engine, HybridEngine):
            raise UsageError("--ray multiplies matrices elsewhere, which only the engine hybrid can")
        connect(address)
        link, router = RayLink(teams, workers, cpus), Router(teams)
        self._held.callback(link.close)
        self._cluster = link, router
        self.engine.elsewhere = ClusterProducts(link, router, self.console.warn)
        self.console.note(f"{teams} x {workers} Ray workers ({address}), which hold the weights")

    def _scale_out_rows(self) -> None:
        """Prepared products too."""
        from ..engines.cluster import ClusterRows
        from ..engines.hybrid import HybridEngine

        assert isinstance(self.engine, HybridEngine)
        hints = self.engine.hints
        hints.products = ClusterRows(*self._cluster, hints.matrices, self.console.warn)

    def listen(self) -> Any:
        """A server that is ready for `serve_forever`."""
        from ..net.tls import Certificate
        from ..parties import Server
        from ..parties.admission import Admission
        from ..parties.fair import FairGate
        from ..parties.metrics import ServerMetrics
        from ..parties.observer import Observers
        from ..parties.paths import server_key_dir

        flags = self.flags
        certificate = None if flags["insecure_plaintext"] else Certificate(server_key_dir())
        clients = None if flags["client_certificates"] is None else Path(flags["client_certificates"])
        self.fingerprint = certificate.fingerprint if certificate else None
        journal, recorder = Journal(flags["report_file"]), Recorder(flags["record_received"])
        metrics = ServerMetrics(self.card.name)

        def closed(report: Any) -> None:
            recorder.flush()
            journal.write(report)

        server = Server(
            self._open_party,
            self._welcome(),
            host=flags["host"],
            port=flags["port"],
            tls=certificate.context(clients) if certificate else None,
            idle_timeout=flags["idle_timeout"],
            on_close=closed,
            tap=recorder.write if recorder.path else None,
            admission=Admission(
                flags["max_sessions"],
                flags["max_waiting"],
                flags["queue_timeout"],
                self._keys,
                flags["max_sessions_per_client"],
                flags["max_context"],
            ),
            observer=Observers(metrics, self.events),
            gate=FairGate(flags["compute_slots"] or processors()),
            kept=self.kept,
            evict_after=flags["evict_after"],
        )
        metrics.watch(server, *self._gauges())
        self._say(server)
        if self.status is not None:
            self.status.page, self.status.status = metrics.page, "ready"
            self.console.note(f"http://{flags['metrics_host']}:{self.status.port} has /health and /metrics")
        self._write("listening", {"host": server.host, "port": server.port, "model": self.card.model_digest})
        return server

    def reload(self) -> None:
        """Read --api-key-file again; if it makes no sense, say so and keep the keys there were."""
        from ..errors import CorruptFileError

        assert self._keys is not None
        try:
            self._write("keys", {"accepted": self._keys.read()})
        except CorruptFileError as error:
            self.console.warn(f"{error}; the keys read before still hold")

    def stopping(self) -> None:
        """No new sessions from here on."""
        if self.status is not None:
            self.status.status = "stopping"
        self._write("stopping", {})

    def close(self) -> None:
        """Everything has ended."""
        self._write("stopped", {})
        self._held.close()

    def _keep_pools(self, limit: int, total: int) -> None:
        """Keep prepared material for clients between their sessions: bytes for each, and for all."""
        from ..parties import server_shelf
        from ..parties.paths import pools_dir
        from ..parties.pools import evict_pools

        self.engine.keep_in(pools_dir() / "hints")
        self.shelf = server_shelf(pools_dir() / "clients", self._welcome(), limit, total)
        evicted = evict_pools(pools_dir() / "clients")
        if evicted:
            self.console.note(f"deleted the prepared material of {evicted} clients that did not come back")

    def _keep_sessions(self, limit: int, max_idle: float) -> None:
        from ..parties.kept import KeptSessions
        from ..parties.paths import server_sessions_dir
        from ..parties.store import SessionStore

        # A session's state fits one model, engine and cache only.
        options = self.engine.options
        part = f"{self.card.model_digest[:16]}-{options.engine}-{options.kv}-{options.arithmetic}"
        store = SessionStore(server_sessions_dir() / part)
        self._held.callback(store.close)
        self.kept = KeptSessions(store, limit, max_idle)

    def _gauges(self) -> list[Any]:
        from ..parties.metrics import pool_gauges
        from ..parties.prometheus import Gauge

        gauges: list[Any] = []
        if self.kept is not None:
            kept = self.kept
            gauges += [
                Gauge("sottovoce_sessions_saved", "Saved sessions on disk.", lambda: len(kept)),
                Gauge("sottovoce_sessions_saved_bytes", "Bytes of them.", kept.size),
            ]
        if self.shelf is not None:
            gauges += pool_gauges(self.shelf.size, self.shelf.count)
        return gauges

    def _open_party(self) -> Any:
        party = self.engine.session()
        party.shelf, party.dealer = self.shelf, self.dealer
        return party

    def _welcome(self) -> Any:
        from ..parties import Welcome

        limits = [limit for limit in (self.flags["max_context"], self.engine.context) if limit is not None]
        context = min(limits) if limits else None
        return Welcome(self.engine.options, self.engine.public(), self.card, context)

    def _say(self, server: Any) -> None:
        """Who sees what, and by which certificate clients know this server."""
        from ..engines.explain import (
            CLEAR_BANNER,
            DEALER_BANNER,
            PLAINTEXT_BANNER,
            engine_line,
            what_the_server_sees,
        )

        note, options = self.console.note, self.engine.options
        note(engine_line(options))
        note(what_the_server_sees(options))
        if options.engine == "clear":
            self.console.warn(CLEAR_BANNER)
        say_statement(self.console, options, self.engine.public())
        if options.correlations == "dealer":
            self.console.warn(DEALER_BANNER)
        if self.fingerprint is None:
            self.console.warn(PLAINTEXT_BANNER)
        else:
            note(f"TLS certificate {self.fingerprint}")
        note(f"model commitment {self.card.model_digest}")
        note(f"listening on {self.flags['host']}:{server.port}")

    def _logs(self) -> list[Any]:
        from ..parties.log import JsonLog

        writers: list[Any] = [JsonLog(sys.stderr) if self.flags["log_format"] == "json" else self._tell]
        if self.flags["log_file"]:
            writers.append(JsonLog(self._held.enter_context(append_private(self.flags["log_file"]))))
        return writers

    def _tell(self, event: str, fields: dict[str, Any]) -> None:
        from ..parties.log import sentence

        if event.startswith(("session", "failure", "keys")):
            self.console.note(sentence(event, fields))

    def _write(self, event: str, fields: dict[str, Any]) -> None:
        for write in self._writers:
            write(event, fields)


def processors() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
