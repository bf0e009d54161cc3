"""Prepared products on a cluster: row blocks, one for each worker of a team."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping

import numpy as np

from sottovoce.correlations.row_products import U64, Int16, LocalRows, MatrixKey, RowProducts

from .link import GoneError, Link
from .router import Router

_WORD = np.uint64((1 << 52) - 1)


class ClusterRows(RowProducts):
    """Products of any session; teams take turns. Rows go to a team when it first needs them.

    Cost of a product: its words to every worker of a team, 8 bytes a number; its result back. If no team is
    left, this process multiplies.
    """

    def __init__(
        self,
        link: Link,
        router: Router,
        matrices: Mapping[MatrixKey, Int16],
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._link, self._router, self._matrices, self._say = link, router, matrices, say
        self._numbers = {key: number for number, key in enumerate(matrices)}
        # Bounds of each worker's rows, by matrix.
        self.bounds = {
            key: [len(matrix) * i // link.workers for i in range(link.workers + 1)]
            for key, matrix in matrices.items()
        }
        self._placed: set[tuple[int, MatrixKey]] = set()
        self._lock, self._turn = threading.Lock(), itertools.count()
        self._local = LocalRows(matrices)

    def product(self, key: MatrixKey, row: int, first: int, words: U64, out: U64, accumulate: bool) -> U64:
        while teams := self._router.alive():
            team = teams[next(self._turn) % len(teams)]
            try:
                parts = self._parts(team, key, row, first, words, len(out))
            except GoneError:
                if self._router.lose(team):
                    self._say(f"team {team} of the cluster is gone; others go on, or this process")
                continue
            for begin, end, rows in parts:
                out[begin:end] = (out[begin:end] + rows) & _WORD if accumulate else rows
            return out
        return self._local.product(key, row, first, words, out, accumulate)

    def _parts(
        self, team: int, key: MatrixKey, row: int, first: int, words: U64, count: int
    ) -> list[tuple[int, int, U64]]:
        link, bounds, number = self._link, self.bounds[key], self._numbers[key]
        self._place(team, key)
        shared, asked = link.put(np.ascontiguousarray(words)), []
        for i in range(link.workers):
            begin, end = max(row, bounds[i]), min(row + count, bounds[i + 1])
            if begin < end:
                part = link.call(team, i, "rows", number, begin - bounds[i], end - bounds[i], first, shared)
                asked.append((begin - row, end - row, part))
        return [(begin, end, link.get(part)) for begin, end, part in asked]

    def _place(self, team: int, key: MatrixKey) -> None:
        with self._lock:
            if (team, key) in self._placed:
                return
            matrix, bounds = self._matrices[key], self.bounds[key]
            for i in range(self._link.workers):
                rows = np.ascontiguousarray(matrix[bounds[i] : bounds[i + 1]])
                self._link.call(team, i, "place_rows", self._numbers[key], rows)
            self._placed.add((team, key))
