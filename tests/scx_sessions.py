"""Both halves of an scx session in two threads, the client's calls followed by the server."""

from __future__ import annotations

from queue import SimpleQueue
from threading import Thread

from sottovoce.engines.base import EngineOptions
from sottovoce.engines.scx import ScxDataParty, ScxEngine
from sottovoce.net import memory_pair


def engine_of(model, profile, library=None):
    engine = ScxEngine(EngineOptions(engine="scx", profile=profile), model, library)
    engine.prepare()
    return engine


class Pair:
    """A session; `server` is its ModelParty, `client` its DataParty."""

    def __init__(self, engine, library=None, observe=None):
        self.channels = memory_pair()
        self.server = engine.session(observe) if observe else engine.session()
        self.client = ScxDataParty(engine.options, engine.public(), library or engine.arrays)
        self._orders = SimpleQueue()
        self._thread = Thread(target=self._serve, daemon=True)
        self._thread.start()
        self.client.setup(self.channels[0])

    def prefill(self, tokens, public=()):
        self._orders.put(("prefill", (public, len(tokens))))
        return self.client.prefill(public, tokens)

    def decode(self, token):
        self._orders.put(("decode", ()))
        return self.client.decode(token)

    def verify(self, tokens):
        self._orders.put(("verify", (len(tokens),)))
        return self.client.verify(tokens)

    def truncate(self, length):
        self._orders.put(("truncate", (length,)))
        self.client.truncate(length)

    def settled(self):
        """Both halves have done everything so far."""
        done = SimpleQueue()
        self._orders.put((done.put, (None,)))
        done.get(timeout=300)

    def _serve(self):
        try:
            self.server.setup(self.channels[1])
            while (order := self._orders.get()) is not None:
                name, arguments = order
                (name if callable(name) else getattr(self.server, name))(*arguments)
        except BaseException as error:
            self.channels[1].abort(error)  # the client raises it

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error is not None:
            self.channels[0].abort(error)  # the server's half may be waiting for what will not come
        self._orders.put(None)
        self._thread.join(300)
