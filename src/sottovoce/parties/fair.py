"""Turns on the processors: sessions compute in turn, so that eight of them finish together.

A session gives its turn back whenever it waits for its client, several times a layer; the next turn goes to
the session that has had the least. Who was away does not get the time back. A client that is slow or silent
holds no turn. Between two waits a turn is not taken away: the unit of fairness is a round.
"""

import heapq
from threading import Lock
from time import perf_counter


class FairGate:
    """So many sessions compute at the same time. places: 1 or more; as many as there are processors."""

    def __init__(self, places: int) -> None:
        self._lock = Lock()
        self._free = places
        self._waiting: list[tuple[float, int, Lock]] = []
        self._order = 0
        self._clock = 0.0  # what the session that was served last had had before

    def member(self) -> "Turns":
        """A session's turns; it has none at first."""
        return Turns(self)

    def enter(self, served: float) -> float:
        """Wait for a turn. Seconds had so far, at least as much as the others when they were served last."""
        mine = Lock()
        with self._lock:
            served = max(served, self._clock)
            if self._free and not self._waiting:
                self._free -= 1
                self._clock = served
                return served
            mine.acquire()
            self._order += 1
            heapq.heappush(self._waiting, (served, self._order, mine))
        mine.acquire()  # until `leave` hands its turn over
        return served

    def leave(self) -> None:
        """Hand the turn to whoever has had the least."""
        with self._lock:
            if self._waiting:
                served, _, lock = heapq.heappop(self._waiting)
                self._clock = max(self._clock, served)
                lock.release()
            else:
                self._free += 1


class Turns:
    """One session's: `resume` waits for a turn, `pause` gives it back; twice is harmless."""

    def __init__(self, gate: FairGate) -> None:
        self._gate = gate
        self.served = 0.0  # seconds
        self._since: float | None = None

    def resume(self) -> None:
        if self._since is None:
            self.served = self._gate.enter(self.served)
            self._since = perf_counter()

    def pause(self) -> None:
        if self._since is not None:
            self.served += perf_counter() - self._since
            self._since = None
            self._gate.leave()
