"""A proxy in front of a server in this process, for tests."""

import os
import threading
from contextlib import contextmanager

from sottovoce.engines.base import EngineOptions
from sottovoce.engines.registry import make_engine
from sottovoce.parties import Address, Client, GenerationOptions, Server, Welcome, Wish
from sottovoce.proxy.app import create_app
from sottovoce.proxy.gateway import Gateway, Plan
from sottovoce.proxy.serving import WebServer
from tiny_model import tiny_model

os.environ.setdefault("OPENAI_API_KEY", "unused")


class SlowParty:
    """Passes everything on to a party of the engine `clear`, but decodes only when it may."""

    def __init__(self, party, gate):
        self._party, self._gate = party, gate

    def __getattr__(self, name):
        return getattr(self._party, name)

    def decode(self):
        self._gate.wait(300)
        self._party.decode()


class Proxied:
    """A model server, a gateway to it and the web application in front.

    gate: while it is cleared the server decodes nothing, at most for five minutes.
    """

    def __init__(self, model=None, options=None, plan=None, **more):
        self.model = tiny_model() if model is None else model
        engine = make_engine(options or EngineOptions(engine="clear"), self.model)
        engine.prepare()
        self.gate = threading.Event()
        self.gate.set()
        self.reports, self.received = [], []
        self.server = Server(
            lambda: SlowParty(engine.session(), self.gate),
            Welcome(engine.options, engine.public(), self.model.card),
            tls=None,
            on_close=self.reports.append,
            tap=lambda session, view: self.received.append(bytes(view)),
        )
        self.address = Address("127.0.0.1", self.server.port)
        self.wish = Wish(engine=engine.options.engine)
        plan = plan or Plan(defaults=GenerationOptions(max_tokens=8))
        self.gateway = Gateway(str(self.address), self.connect, plan, **more)

    def connect(self):
        return Client.connect(self.address, self.wish, None)

    @contextmanager
    def running(self, **times):
        with self.server, WebServer(create_app(self.gateway, **times)) as web:
            self.url = web.url
            try:
                yield self
            finally:
                self.gate.set()
