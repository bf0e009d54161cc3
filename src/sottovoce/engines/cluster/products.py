"""Online products on a cluster: tiles of a matrix at the workers of the team that has the session's keys."""

from __future__ import annotations

import itertools
import secrets
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from sottovoce.bgv import Ciphertext, Evaluator
from sottovoce.mpc.encoded import EncodedMatrix
from sottovoce.mpc.executor import OnlineProducts
from sottovoce.mpc.linear import multiply
from sottovoce.mpc.tiles import cut
from sottovoce.packing import MatVecPlan

from .link import GoneError, Link
from .router import Router
from .worker import received, sent


class ClusterProducts(OnlineProducts):
    """A session gets an id and, by it, a team, to whose workers its rotation keys go once.

    Cost of a product on the cluster's network: its inputs to every worker, 393 KB a ciphertext; from worker
    to worker, and to this process, one ciphertext for each output. If a worker is gone, its team's sessions
    move to another team, and if there is none, this process multiplies.
    """

    def __init__(self, link: Link, router: Router, say: Callable[[str], None] = lambda text: None) -> None:
        self._link, self._router, self._say = link, router, say
        self._matrices: list[EncodedMatrix] = []
        self._numbers: dict[int, int] = {}
        self._sessions: weakref.WeakKeyDictionary[Evaluator, str] = weakref.WeakKeyDictionary()
        self._opened: dict[str, int] = {}
        self._ended: deque[str] = deque()
        self._placed: set[tuple[int, int]] = set()
        self._lock, self._calls = threading.RLock(), itertools.count()

    def attach(self, matrices: Sequence[EncodedMatrix], now: bool) -> None:
        self._matrices = list(matrices)
        self._numbers = {id(matrix): number for number, matrix in enumerate(self._matrices)}
        for number, matrix in enumerate(self._matrices):
            matrix.elsewhere = self
            for team in self._router.alive() if now else ():
                try:
                    self._place(team, number)
                    made = [self._link.call(team, i, "warm", number) for i in range(self._link.workers)]
                    for promise in made:
                        self._link.get(promise)
                except GoneError:
                    self._lose(team)

    def session(self, evaluator: Evaluator) -> str:
        """The id by which a session is routed."""
        with self._lock:
            found = self._sessions.get(evaluator)
            if found is None:
                found = self._sessions[evaluator] = secrets.token_hex(8)
                # Not `_close`: the collector may run anywhere, and must not wait for a lock.
                weakref.finalize(evaluator, self._ended.append, found)
            return found

    def multiply(
        self, evaluator: Evaluator, matrix: EncodedMatrix, inputs: Ciphertext, plan: MatVecPlan
    ) -> Ciphertext:
        self._close_ended()
        number, session = self._numbers[id(matrix)], self.session(evaluator)
        while (team := self._router.team(session)) is not None:
            try:
                return self._multiply(team, session, evaluator, number, inputs, plan)
            except GoneError:
                self._lose(team)
        return multiply(evaluator, matrix, inputs, plan)

    def _multiply(
        self,
        team: int,
        session: str,
        evaluator: Evaluator,
        number: int,
        inputs: Ciphertext,
        plan: MatVecPlan,
    ) -> Ciphertext:
        link, call = self._link, next(self._calls)
        if plan.tokens == 1:
            plan = self._matrices[number].plan
        self._place(team, number)
        self._open(team, session, evaluator)
        parts, shared = cut(plan, link.workers), link.put(sent(inputs))
        asked = [
            link.call(team, worker, "begin", session, call, number, plan.tokens, shared)
            for worker, tiles in enumerate(parts)
            if tiles
        ]
        # From the worker with an output's highest giant steps to the one with its lowest.
        chains: dict[int, object] = {}
        for worker in reversed(range(link.workers)):
            for tile in reversed(parts[worker]):
                above = chains.get(tile.output)
                where = (session, call, number, plan.tokens, tile.output)
                chains[tile.output] = link.call(team, worker, "finish", *where, above)
        for promise in asked:
            link.get(promise)
        outputs = [received(link.get(chains[o])) for o in range(plan.output_count)]
        data = np.stack([one.data for one in outputs])
        return replace(outputs[0], data=data, noise=max(one.noise for one in outputs))

    def _place(self, team: int, number: int) -> None:
        with self._lock:
            if (team, number) not in self._placed:
                weights = self._link.put(self._matrices[number].weights)
                for worker in range(self._link.workers):
                    self._link.call(team, worker, "place", number, weights)
                self._placed.add((team, number))

    def _open(self, team: int, session: str, evaluator: Evaluator) -> None:
        with self._lock:
            if self._opened.get(session) != team:
                assert evaluator.galois_keys is not None
                keys = self._link.put(evaluator.galois_keys.to_bytes())
                for worker in range(self._link.workers):
                    self._link.call(team, worker, "open", session, keys)
                self._opened[session] = team

    def _close_ended(self) -> None:
        """Workers forget the keys of sessions that are over."""
        while self._ended:
            session = self._ended.popleft()
            team = self._router.end(session)
            with self._lock:
                self._opened.pop(session, None)
            if team is not None:
                for worker in range(self._link.workers):
                    self._link.call(team, worker, "close", session)

    def _lose(self, team: int) -> None:
        if self._router.lose(team):
            self._say(f"team {team} of the cluster is gone; its sessions go on elsewhere")
