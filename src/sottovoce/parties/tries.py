"""Trying again: how long, and how often in a row without getting anywhere."""

import time
from collections.abc import Callable

from ..engines.base import Progress
from ..errors import PeerConnectionError, ServerBusyError


class NobodyThereError(PeerConnectionError):
    """It has been tried for long enough."""


def until_there(connect: Callable[[], None], patience: float, hint: str) -> None:
    """Connect, again and again for `patience` seconds. NobodyThereError with `hint` if nobody is there."""
    deadline, pause = time.monotonic() + patience, 0.1
    while True:
        try:
            return connect()
        except (PeerConnectionError, ServerBusyError) as error:
            if time.monotonic() + pause > deadline:
                raise NobodyThereError(f"{error}{hint}") from None
            time.sleep(pause)
            pause = min(2 * pause, 5.0)


class Tries:
    """Attempts at something long. A call that gets further than all before starts the count again."""

    def __init__(self, most: int, progress: Progress | None) -> None:
        self._most, self._progress = most, progress
        self._failed = self._furthest = 0

    def progress(self, done: int, total: int, what: str) -> None:
        """What the attempts report to."""
        if done > self._furthest:
            self._failed, self._furthest = 0, done
        if self._progress is not None:
            self._progress(done, total, what)

    def failed(self) -> bool:
        """One attempt failed; whether there may be another one."""
        self._failed += 1
        return self._failed < self._most
