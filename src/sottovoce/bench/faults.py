"""Faults at random points of a kept session: it goes on with the same tokens, or says clearly why not.

Every point is a session of the tiny model, a prompt and some greedy tokens, in which one thing goes wrong at
one frame: the connection breaks, a frame is cut, doubled or late, one of the two processes ends. After an
error the user does the obvious thing: opens the saved session again and goes on. A point is good if the
tokens are those of a session without faults, if no frame was ever sent twice (frames of tokens are masked
with one-time values or freshly encrypted: a repeated one would mean a repeated mask), and if both parties'
files are whole.
"""

from __future__ import annotations

import random
import sqlite3
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from time import perf_counter
from typing import Any

import numpy as np

from sottovoce.bench.faulty import Fault, FaultyChannel, KilledError, Plan, faulty_pair
from sottovoce.bench.machine import header
from sottovoce.bench.tiny import tiny_model
from sottovoce.engines.base import Engine, EngineOptions, Progress
from sottovoce.engines.registry import make_engine
from sottovoce.errors import SottovoceError
from sottovoce.net import Role
from sottovoce.parties import Client, Identity, ServerSession, Welcome, Wish
from sottovoce.parties.kept import KeptSessions
from sottovoce.parties.saved import SavedSession
from sottovoce.parties.store import SessionStore

_PROMPT, _PUBLIC = [3, 31, 8, 12], [5, 9, 7]
_TOKENS = 6
_NAME = "session"
_ATTEMPTS = 6  # sessions that a user opens, one after the other, before giving up


@dataclass
class Report:
    """seamless: nobody noticed. reopened: after a clear error the saved session went on. restarted: it had
    not been saved yet, and the user began anew. failures: everything that must not be."""

    kv: str
    points: int
    seed: int
    seamless: int = 0
    reopened: int = 0
    restarted: int = 0
    resumed_connections: int = 0
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "faults": dict(self.faults), "errors": dict(self.errors)}


def run(
    points: int = 1000,
    seed: int = 0,
    kv: str = "clear",
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """For `sottovoce bench faults`."""
    return {**run_faults(points, seed, kv, progress).to_json(), **header()}


def run_faults(
    points: int,
    seed: int = 0,
    kv: str = "clear",
    progress: Progress = lambda done, total, what: None,
) -> Report:
    """kv: a strategy of the engine hybrid, or `clear` for the engine without cryptography."""
    rng, start = random.Random(seed), perf_counter()
    options = EngineOptions("clear") if kv == "clear" else EngineOptions("hybrid", kv)
    engine = make_engine(options, tiny_model())
    engine.prepare()
    quiet = Plan(Fault.DELAY, Role.CLIENT, 0)
    with tempfile.TemporaryDirectory(prefix="sottovoce-faults-") as directory:
        expected, _, _ = _Point(engine, Path(directory), quiet).run()
    report = Report(kv, points, seed)
    for point in range(points):
        party = rng.choice(list(Role))
        plan = Plan(rng.choice(list(Fault)), party, rng.randint(1, quiet.count[party]), rng.random() * 0.005)
        report.faults[f"{plan.fault} {party.name.lower()}"] += 1
        with tempfile.TemporaryDirectory(prefix="sottovoce-faults-") as directory:
            _judge(report, _Point(engine, Path(directory), plan), expected)
        progress(point + 1, points, "faults")
    report.seconds = perf_counter() - start
    return report


def _judge(report: Report, point: _Point, expected: list[int]) -> None:
    plan = point.plan
    where = f"{plan.fault} by {plan.party.name.lower()} at frame {plan.frame}"
    try:
        tokens, how, resumed = point.run()
    except Exception as error:  # noqa: BLE001  (whatever it is, it is a finding)
        report.failures.append(f"{where}: {type(error).__name__}: {error}")
        return
    setattr(report, how, getattr(report, how) + 1)
    report.resumed_connections += resumed
    report.errors.update(point.errors)
    if tokens != expected:
        report.failures.append(f"{where}: other tokens")
    # A doubled frame is the fault itself.
    if report.kv != "clear" and plan.repeated > (plan.fault is Fault.DUPLICATE):
        report.failures.append(f"{where}: {plan.repeated} frames were sent twice")
    report.failures += [f"{where}: {finding}" for finding in point.damage()]


class _Point:
    """One session with its two stores, and a server that can be started again."""

    def __init__(self, engine: Engine, directory: Path, plan: Plan) -> None:
        self.engine, self.plan, self.directory = engine, plan, directory
        self.errors: list[str] = []
        self.welcome = Welcome(engine.options, engine.public(), tiny_model().card)
        self.kept = KeptSessions(SessionStore(directory / "server"))
        self._threads: list[Thread] = []
        plan.on_kill = self._restart

    def run(self) -> tuple[list[int], str, int]:
        """The tokens, how they were come by, and how many connections the client opened by itself."""
        how, resumed, tokens = "seamless", 0, list[int]()
        store = SessionStore(self.directory / "client")
        for _ in range(_ATTEMPTS):
            client: Client | None = None
            try:
                saved = SavedSession.open(store, _NAME) if store.find(_NAME) else None
                client = Client(
                    self._connect()[0], Wish(self.engine.options.engine), saved=saved, again=self._connect
                )
                client.setup()
                if saved is None:
                    client.keep(store, _NAME)
                tokens = _answer(client)
                resumed += client.resumed
                client.close()
                break
            except KilledError:
                # Nothing of the process is left but its files.
                store.close()
                store = SessionStore(self.directory / "client")
            except SottovoceError as error:
                if not str(error):
                    raise
                self.errors.append(type(error).__name__)
                if client is not None:
                    client.close()
            how = "reopened" if store.find(_NAME) else "restarted"
        for thread in self._threads:
            thread.join()
        store.close()
        return tokens, how, resumed

    def damage(self) -> list[str]:
        """What is wrong with the files of the two parties."""
        found = []
        for party in ("client", "server"):
            with sqlite3.connect(self.directory / party / "sessions.db") as db:
                (state,) = db.execute("PRAGMA integrity_check").fetchone()
            db.close()
            store = SessionStore(self.directory / party)
            for entry in store.entries():
                try:
                    store.head(entry.id)
                    store.pieces(entry.id)
                except SottovoceError as error:
                    found.append(f"{party}: {error}")
            store.close()
            if state != "ok":
                found.append(f"the database of the {party} is damaged: {state}")
        return found

    def _connect(self) -> tuple[FaultyChannel, Identity | None]:
        mine, theirs = faulty_pair(self.plan)
        thread = Thread(target=self._serve, args=(theirs,), daemon=True)
        self._threads.append(thread)
        thread.start()
        return mine, None

    def _serve(self, channel: FaultyChannel) -> None:
        try:
            ServerSession(channel, self.engine.session, self.welcome, kept=self.kept).run()
        except KilledError:
            pass

    def _restart(self, role: Role) -> None:
        """Of a server that was killed, another process takes over the files."""
        if role is Role.SERVER:
            self.kept = KeptSessions(SessionStore(self.directory / "server"))


def _answer(client: Client) -> list[int]:
    """Public prefix, prompt and greedy tokens, or what is left of them to do; all tokens but the prompt's."""
    start = len(_PUBLIC) + len(_PROMPT)
    if client.length < start:
        if client.length:
            client.truncate(0)
        logits = client.prefill(_PUBLIC, _PROMPT)
    else:
        # The logits behind the last token were not kept: it is appended once more.
        last = client.tokens[-1]
        client.truncate(client.length - 1)
        logits = client.decode(last) if client.length >= start else client.prefill((), [last])
    while client.length < start + _TOKENS:
        logits = client.decode(int(np.argmax(logits)))
    return client.tokens[start:]
