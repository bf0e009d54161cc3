"""Steps that go on without their client: an engine's step of minutes need not be begun again because a
connection broke.

A session that is saved may finish the step it is at when its client leaves: one step and no more. It holds
its place and its turns on the processors as before. The answer is saved with the session, where the client
that comes back collects it; a client that comes back earlier waits, and hears how far the step is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..engines.base import Attendance
from ..errors import PeerGoneError, SottovoceError
from ..net.channel import Turn


class Unattended(Attendance):
    """One session's. Written by its thread; `cancel` and the numbers are for others, too.

    allowed: whether a step may outlive its client; set once the session is saved. done, total: how far the
    step is, in units of its engine; total is 0 for engines that do not say, and for sessions between steps.
    alone: whether the client of this step is gone.
    """

    def __init__(self, turn: Turn | None = None) -> None:
        self.allowed = self.alone = False
        self.done = self.total = 0
        self._turn, self._cancelled = turn, False

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around every command."""
        try:
            yield
        finally:
            self.done = self.total = 0

    def progress(self, done: int, total: int) -> None:
        """PeerGoneError if the step was cancelled."""
        self.done, self.total = done, total
        if self._cancelled:
            raise PeerGoneError("the step was cancelled: its session was deleted, or the server is stopping")
        if self._turn is not None:
            # Nothing is waited for inside such a step: others get their turn here.
            self._turn.pause()
            self._turn.resume()

    def left(self, error: SottovoceError) -> None:
        """Raises `error` unless the step may go on alone."""
        if not self.allowed:
            raise error
        self.alone = True

    def cancel(self) -> None:
        """End the step at its next unit."""
        self._cancelled = True
