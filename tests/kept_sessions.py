"""Servers that keep sessions, for tests: over sockets, without TLS, restarted on the same directory."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from sottovoce.engines.base import Engine
from sottovoce.parties import Address, Client, Server, Welcome, Wish
from sottovoce.parties.address import Route
from sottovoce.parties.kept import KeptSessions
from sottovoce.parties.saved import SavedSession
from sottovoce.parties.store import SessionStore


class Host:
    """A server on a port of the system's choice, and the client's store beside it."""

    def __init__(self, engine: Engine, model, directory: Path, **options) -> None:
        self.engine, self.model, self.directory, self.options = engine, model, directory, options
        self.mine = SessionStore(directory / "client")
        self.reports = []
        self.start()

    def start(self) -> None:
        """Again, after `stop`; on another port, where `client` finds it."""
        self.kept = KeptSessions(SessionStore(self.directory / "server"))
        self.welcome = Welcome(self.engine.options, self.engine.public(), self.model.card)
        self.server = Server(
            self.engine.session,
            self.welcome,
            tls=None,
            on_close=self.reports.append,
            kept=self.kept,
            **self.options,
        ).start()

    def route(self):
        return Route(Address("127.0.0.1", self.server.port), None).open()

    def stop(self, grace: float = 0.0) -> None:
        self.server.stop()
        self.server.wait(grace)
        self.wait_until_empty()

    def wait_until_empty(self) -> None:
        """Until the server has noticed that all clients left."""
        while self.server.sessions:
            time.sleep(0.01)

    def client(self, name: str | None = None, setup: bool = True, **options) -> Client:
        """A new session, or the one that was saved under that name."""
        saved = None if name is None else SavedSession.open(self.mine, name)
        wish = Wish(self.engine.options.engine)
        client = Client(*self.connected(wish), saved=saved, again=self.route, **options)
        if setup:
            client.setup()
        return client

    def connected(self, wish):
        channel, identity = self.route()
        return channel, wish, identity

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


def greedy_tokens(
    client: Client, prompt: list[int], count: int, public: list[int] | None = None
) -> list[int]:
    """Prefill and decode."""
    tokens = [int(np.argmax(client.prefill(public or [], prompt)))]
    while len(tokens) < count:
        tokens.append(int(np.argmax(client.decode(tokens[-1]))))
    return tokens


def go_on(client: Client, count: int) -> list[int]:
    """`count` more tokens of a session that lies as it was left: its last token is appended once more."""
    last = client.tokens[-1]
    client.truncate(client.length - 1)
    tokens = [int(np.argmax(client.decode(last)))]
    while len(tokens) < count:
        tokens.append(int(np.argmax(client.decode(tokens[-1]))))
    return tokens
