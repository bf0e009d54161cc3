"""One session of two processes in which one thing goes wrong, and what is left of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from sottovoce.bench.faulty import Board, FaultyChannel, Plan, watch_pools
from sottovoce.bench.served import wish_of
from sottovoce.engines.base import Engine, ModelParty
from sottovoce.errors import SottovoceError
from sottovoce.models.tiny import tiny_model
from sottovoce.net import Role
from sottovoce.parties import Client, Identity, Pools, ServerSession, Welcome, server_shelf
from sottovoce.parties.kept import KeptSessions
from sottovoce.parties.saved import SavedSession
from sottovoce.parties.store import SessionStore

PUBLIC, PROMPT = [5, 9, 7], [3, 31, 8, 12]
_NAME = "session"
_ATTEMPTS = 6  # sessions that a user opens, one after the other, before giving up
_PATIENCE = 120.0  # seconds for one of them; who takes longer hangs


@dataclass
class Course:
    """How a point went. how: `seamless`, `reopened` or `restarted`. resumed: connections that the client
    opened by itself. errors: what the user was told."""

    tokens: list[int] = field(default_factory=list)
    how: str = "seamless"
    resumed: int = 0
    errors: list[str] = field(default_factory=list)


class Point:
    """directory: of the two parties' files. tokens: of the answer. pools: directory with both halves of a
    pool, which the point gets copies of. None: without."""

    def __init__(
        self, engine: Engine, directory: Path, plan: Plan | None, tokens: int, pools: Path | None = None
    ) -> None:
        self.engine, self.plan, self.directory, self.tokens = engine, plan, directory, tokens
        directory.mkdir(exist_ok=True)
        self.board = Board(directory)
        self._welcome = Welcome(engine.options, engine.public(), tiny_model().card)
        self._pools = None
        if pools is not None:
            self._pools = directory / "pools"
            shutil.copytree(pools, self._pools)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=16)

    def run(self) -> Course:
        """Sessions until one gives the whole answer. Every attempt at the client is a process of its own, as
        are the server and who takes over from it when it is killed."""
        course, self._server = Course(), _fork(self._serve)
        try:
            for _ in range(_ATTEMPTS):
                outcome = self._attempt()
                if "bug" in outcome:
                    raise RuntimeError(outcome["bug"])
                if "tokens" in outcome:
                    course.tokens, course.resumed = outcome["tokens"], outcome["resumed"]
                    break
                course.errors += [outcome["error"]] if outcome else []  # who was killed says nothing
                course.how = "reopened" if self._is_saved() else "restarted"
            return course
        finally:
            _end(self._server)
            self._listener.close()

    def _attempt(self) -> dict[str, Any]:
        """A client's process, from its start to its end; meanwhile somebody starts the server again."""
        reader, writer = os.pipe()
        client, deadline = _fork(lambda: self._ask(writer)), time.monotonic() + _PATIENCE
        os.close(writer)
        try:
            while _status(client) is None:
                if time.monotonic() > deadline:
                    _end(client)
                    raise RuntimeError("a client hangs")
                if (status := _status(self._server)) is not None:
                    if status != -signal.SIGKILL:
                        raise RuntimeError("the server ended by itself")
                    self._server = _fork(self._serve)
                time.sleep(0.003)
            with os.fdopen(reader, "rb", closefd=False) as pipe:
                outcome: dict[str, Any] = json.loads(pipe.read() or b"{}")
            return outcome
        finally:
            os.close(reader)

    def damage(self) -> list[str]:
        """What is wrong with the files of the two parties."""
        found = []
        for party in ("client", "server"):
            if not (self.directory / party / "sessions.db").exists():
                continue
            found += _broken(self.directory / party / "sessions.db")
            store = SessionStore(self.directory / party)
            for entry in store.entries():
                try:
                    store.head(entry.id)
                    store.pieces(entry.id)
                except SottovoceError as error:
                    found.append(f"{party}: {error}")
            store.close()
        for ledger in [] if self._pools is None else self._pools.rglob("marks.db"):
            found += _broken(ledger)
        return found

    def _is_saved(self) -> bool:
        store = SessionStore(self.directory / "client")
        try:
            return store.find(_NAME) is not None
        finally:
            store.close()

    def _ask(self, pipe: int) -> None:
        """A client's process: one session, new or saved, and what came of it."""
        watch_pools(self.board, Role.CLIENT)
        outcome: dict[str, Any] = {}
        try:
            outcome = self._one_session()
        except SottovoceError as error:
            outcome = {"error": type(error).__name__} if str(error) else {"bug": f"{error!r} says nothing"}
        except Exception:  # noqa: BLE001  (whatever it is, it is a finding)
            outcome = {"bug": traceback.format_exc()}
        os.write(pipe, json.dumps(outcome).encode())

    def _one_session(self) -> dict[str, Any]:
        store = SessionStore(self.directory / "client")
        saved = SavedSession.open(store, _NAME) if store.find(_NAME) else None
        pools = None if self._pools is None else Pools(self._pools / "client")
        wish = wish_of(self.engine.options)
        channel, identity = self._connect()
        client = Client(channel, wish, identity, pools=pools, saved=saved, again=self._connect)
        try:
            client.setup()
            if saved is None:
                client.keep(store, _NAME)
            tokens = _answer(client, self.tokens)
        finally:
            client.close()
        return {"tokens": tokens, "resumed": client.resumed}

    def _connect(self) -> tuple[FaultyChannel, Identity | None]:
        sock = socket.create_connection(self._listener.getsockname())
        return FaultyChannel(Role.CLIENT, sock, self.plan, self.board), None

    def _serve(self) -> None:
        """The server's process, until it is killed."""
        watch_pools(self.board, Role.SERVER)
        kept = KeptSessions(SessionStore(self.directory / "server"))
        while True:
            sock, _ = self._listener.accept()
            channel = FaultyChannel(Role.SERVER, sock, self.plan, self.board)
            session = ServerSession(channel, self._open, self._welcome, kept=kept)
            Thread(target=session.run, daemon=True).start()

    def _open(self) -> ModelParty:
        party = self.engine.session()
        if self._pools is not None:
            party.shelf = server_shelf(self._pools / "server", self._welcome)
        return party


def prepare_pools(engine: Engine, directory: Path, tokens: int) -> None:
    """Make both halves of a pool for so many tokens, to be copied to every point."""
    point = Point(engine, directory / "work", None, 0)
    point._pools = directory / "pools"
    server = _fork(point._serve)
    try:
        channel, _ = point._connect()
        pools = Pools(point._pools / "client", make=True)
        with Client(channel, wish_of(engine.options), pools=pools) as client:
            client.setup()
            client.prepare(tokens)
    finally:
        _end(server)


def _answer(client: Client, count: int) -> list[int]:
    """Public prefix, prompt and an answer, or what is left of them to do; all tokens but the prompt's.

    Each token is the likeliest one moved by its position: left alone, the tiny model would say the same one
    forever, whatever went wrong.
    """
    start = len(PUBLIC) + len(PROMPT)
    if client.length < start:
        if client.length:
            client.truncate(0)
        logits = client.prefill(PUBLIC, PROMPT)
    else:
        # The logits behind the last token were not kept: it is appended once more.
        last = client.tokens[-1]
        client.truncate(client.length - 1)
        logits = client.decode(last) if client.length >= start else client.prefill((), [last])
    while client.length < start + count:
        logits = client.decode((int(np.argmax(logits)) + 231 * client.length) % 256)
    return client.tokens[start:]


def _fork(run: Callable[[], None]) -> int:
    """A child process that does one thing and leaves without anything else of its parent's."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        run()
        code = 0
    except BaseException:  # noqa: BLE001  (nothing may return into the parent's code)
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _status(process: int) -> int | None:
    """How a child ended (the negative of a signal), None while it runs."""
    pid, status = os.waitpid(process, os.WNOHANG)
    return None if pid == 0 else os.waitstatus_to_exitcode(status)


def _end(process: int) -> None:
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def _broken(database: Path) -> list[str]:
    db = sqlite3.connect(database)
    try:
        (state,) = db.execute("PRAGMA integrity_check").fetchone()
    except sqlite3.DatabaseError as error:
        state = str(error)
    finally:
        db.close()
    return [] if state == "ok" else [f"{database.parent.name}/{database.name} is damaged: {state}"]
