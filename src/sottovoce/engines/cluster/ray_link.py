"""Workers as actors of a Ray cluster (optional extra `ray`).

What crosses the cluster's network are weights (once), rotation keys, a client's ciphertexts and products
before they are masked: all of it belongs into the server's trust domain, so the cluster must too.
"""

from __future__ import annotations

from typing import Any

from sottovoce.errors import ParameterError, UsageError

from .link import GoneError, Link
from .worker import Worker


class RayLink(Link):
    """cpus: reserved for each worker, and the threads of its kernels."""

    def __init__(self, teams: int, workers: int, cpus: float = 1.0) -> None:
        if teams < 1 or workers < 1:
            raise ParameterError(f"scale-out takes a team and a worker or more, not {teams} of {workers}")
        super().__init__(teams, workers)
        self._ray = _ray()
        actor = self._ray.remote(Worker).options(num_cpus=cpus, scheduling_strategy="SPREAD")
        threads = max(1, int(cpus))
        self._actors = {
            (t, w): actor.remote(w, workers, threads) for t in range(teams) for w in range(workers)
        }

    def put(self, value: object) -> Any:
        return self._ray.put(value)

    def call(self, team: int, worker: int, method: str, *arguments: object) -> Any:
        return getattr(self._actors[team, worker], method).remote(*arguments)

    def get(self, promise: Any) -> Any:
        try:
            return self._ray.get(promise)
        except self._ray.exceptions.RayTaskError as error:
            # A worker's own error, unless what it waited for was another worker that is gone.
            if isinstance(error.cause, self._ray.exceptions.RayError):
                raise GoneError(str(error.cause)) from None
            raise
        except self._ray.exceptions.RayError as error:
            raise GoneError(str(error)) from None

    def nodes(self) -> dict[tuple[int, int], str]:
        """Where the workers are, by team and number."""
        return {place: self.get(self.call(*place, "node")) for place in self._actors}

    def kill(self, team: int, worker: int) -> None:
        """End one worker, as a machine that fails would."""
        self._ray.kill(self._actors[team, worker])

    def close(self) -> None:
        for actor in self._actors.values():
            self._ray.kill(actor)


def connect(address: str) -> None:
    """Join the cluster at `address`, or start one on this machine for `local`. Problems are Ray's own."""
    ray = _ray()
    if not ray.is_initialized():
        where = {} if address == "local" else {"address": address}
        ray.init(log_to_driver=False, include_dashboard=False, **where)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UsageError("scale-out needs Ray; install it with: pip install 'sottovoce[ray]'") from None
    return ray
