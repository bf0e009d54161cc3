"""How the server's process reaches its workers."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from typing import Any

from .worker import Worker


class GoneError(Exception):
    """A worker does not answer any more. Stays in this package: there is always another way to a product."""


class Link(ABC):
    """`teams` times `workers` workers. Calls of one worker run one after the other, in order."""

    def __init__(self, teams: int, workers: int) -> None:
        self.teams, self.workers = teams, workers

    @abstractmethod
    def put(self, value: object) -> Any:
        """Something that many calls get: what it returns stands for the value as an argument."""

    @abstractmethod
    def call(self, team: int, worker: int, method: str, *arguments: object) -> Any:
        """Ask a worker; returns a promise at once. Arguments may be promises of other workers' results."""

    @abstractmethod
    def get(self, promise: Any) -> Any:
        """What was promised. GoneError if the worker is gone, its own error if it failed."""

    @abstractmethod
    def close(self) -> None:
        """End all workers; they hold weights."""


class Inline(Link):
    """Workers in this process, which run when they are called. Values are pickled, as between machines."""

    def __init__(self, teams: int, workers: int) -> None:
        super().__init__(teams, workers)
        self.made = {(t, w): Worker(w, workers) for t in range(teams) for w in range(workers)}
        self.calls: list[tuple[int, int, str]] = []
        self.killed: set[tuple[int, int]] = set()

    def put(self, value: object) -> Any:
        return _Promise(value)

    def call(self, team: int, worker: int, method: str, *arguments: object) -> Any:
        self.calls.append((team, worker, method))
        try:
            if (team, worker) in self.killed:
                raise GoneError
            values = [self.get(one) if isinstance(one, _Promise) else one for one in arguments]
        except GoneError as error:
            return _Promise(error)
        buffers: list[pickle.PickleBuffer] = []
        data = pickle.dumps(values, protocol=5, buffer_callback=buffers.append)
        # Arrays that cannot be written, as those in a cluster's shared memory.
        values = pickle.loads(data, buffers=[bytes(one.raw()) for one in buffers])
        return _Promise(getattr(self.made[team, worker], method)(*values))

    def get(self, promise: Any) -> Any:
        if isinstance(promise.value, GoneError):
            raise promise.value
        return promise.value

    def close(self) -> None:
        self.made.clear()


class _Promise:
    def __init__(self, value: object) -> None:
        self.value = value
