"""What a server tells those who watch over it: sizes, times and counts, never content."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..net.ledger import LedgerRow
from .protocol import Verb

if TYPE_CHECKING:
    from .session import ServerSession, SessionReport


class Observer:
    """Hears what happens, from the threads of the sessions; does nothing with it."""

    def opened(self, session: ServerSession) -> None:
        """Its setup is done."""

    def step(self, session: ServerSession, verb: Verb, tokens: int, seconds: float, cost: LedgerRow) -> None:
        """A command was carried out. tokens: how many it added. cost: what the ledger booked for it."""

    def failed(self, session: ServerSession, what: str, why: str) -> None:
        """Something went wrong that the session survives."""

    def closed(self, report: SessionReport) -> None:
        """A connection ended, after a session or without one."""


class Observers(Observer):
    """Several at once."""

    def __init__(self, *watching: Observer) -> None:
        self._watching = watching

    def opened(self, session: ServerSession) -> None:
        for one in self._watching:
            one.opened(session)

    def step(self, session: ServerSession, verb: Verb, tokens: int, seconds: float, cost: LedgerRow) -> None:
        for one in self._watching:
            one.step(session, verb, tokens, seconds, cost)

    def failed(self, session: ServerSession, what: str, why: str) -> None:
        for one in self._watching:
            one.failed(session, what, why)

    def closed(self, report: SessionReport) -> None:
        for one in self._watching:
            one.closed(report)
