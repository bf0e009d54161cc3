"""What has been made and not yet handed out: rows that leave in order, once."""

from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.ot import FoldedPads

Arrays = tuple[npt.NDArray[Any], ...]


class Stock:
    """Items of one kind as parallel arrays with a common leading axis; first in, first out.

    A sender's pads may lie here folded; they become arrays when they are taken.
    """

    def __init__(self) -> None:
        self._pieces: deque[Arrays | FoldedPads] = deque()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, items: Arrays | FoldedPads) -> None:
        """Append items."""
        if _rows(items):
            self._pieces.append(items)
            self._count += _rows(items)

    def take(self, n: int) -> Arrays:
        """Remove and return the first n items; the stock must hold them."""
        assert n <= len(self), "a correlation was asked for that has not been made"
        self._count -= n
        taken = []
        while n:
            piece = self._pieces.popleft()
            rows = _rows(piece)
            if rows > n:
                self._pieces.appendleft(_slice(piece, n, rows))
                piece = _slice(piece, 0, n)
            n -= min(n, rows)
            taken.append((piece.unfold(),) if isinstance(piece, FoldedPads) else piece)
        if len(taken) == 1:
            return taken[0]
        return tuple(np.concatenate(parts) for parts in zip(*taken, strict=True))


def _rows(items: Arrays | FoldedPads) -> int:
    return len(items) if isinstance(items, FoldedPads) else len(items[0])


def _slice(items: Arrays | FoldedPads, start: int, stop: int) -> Arrays | FoldedPads:
    if isinstance(items, FoldedPads):
        return items.slice(start, stop)
    return tuple(array[start:stop] for array in items)
