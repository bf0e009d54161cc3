"""Both parties of any engine in two threads of this process; the client's calls are followed by the server.

Nothing is timed here: `bench.session` runs a hybrid session in two processes for that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import TypeVar

from sottovoce.engines.base import DataParty, Engine, Logits, ModelParty
from sottovoce.engines.registry import make_data_party
from sottovoce.net import Channel, run_pair

T = TypeVar("T")
_Order = tuple[str | Callable[[ModelParty], object], tuple[object, ...]]


class Driver:
    """A client's half of a session. Each call tells the server's thread to do its half, and no token."""

    def __init__(self, party: DataParty, orders: SimpleQueue[_Order | None]) -> None:
        self.party, self._orders = party, orders

    def prefill(self, public: Sequence[int], private: Sequence[int]) -> Logits:
        """Logits (vocab,) of the last of the private tokens."""
        self._orders.put(("prefill", (public, len(private))))
        return self.party.prefill(public, private)

    def decode(self, token: int) -> Logits:
        """Logits (vocab,) behind one more token."""
        self._orders.put(("decode", ()))
        return self.party.decode(token)

    def verify(self, tokens: Sequence[int]) -> Logits:
        """Logits (T, vocab) behind each of T more tokens."""
        self._orders.put(("verify", (len(tokens),)))
        return self.party.verify(tokens)

    def truncate(self, length: int) -> None:
        """Forget all tokens from `length` on."""
        self._orders.put(("truncate", (length,)))
        self.party.truncate(length)

    def at_server(self, act: Callable[[ModelParty], object]) -> None:
        """Something done to the server's half, when its thread is there; nobody waits for it."""
        self._orders.put((act, ()))


def drive(engine: Engine, script: Callable[[Driver], T]) -> T:
    """Run a script in a new session of a prepared engine. What either party raises is raised here."""
    orders: SimpleQueue[_Order | None] = SimpleQueue()

    def server(channel: Channel) -> None:
        party = engine.session()
        party.setup(channel)
        while (order := orders.get()) is not None:
            act, arguments = order
            if callable(act):
                act(party)
            else:
                getattr(party, act)(*arguments)
        party.close()

    def client(channel: Channel) -> T:
        party = make_data_party(engine.options, engine.public())
        try:
            party.setup(channel)
            return script(Driver(party, orders))
        finally:
            orders.put(None)
            party.close()

    return run_pair(client, server)[0]


__all__ = ["Driver", "drive"]
