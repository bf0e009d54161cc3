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
        self._first = 0  # rows of the first piece that have been taken
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
        assert n <= self._count, "a correlation was asked for that has not been made"
        self._count -= n
        taken = []
        while n:
            piece, start = self._pieces[0], self._first
            rows = _rows(piece)
            self._first = stop = min(rows, start + n)
            n -= stop - start
            if stop == rows:
                self._pieces.popleft()
                self._first = 0
            taken.append(_slice(piece, start, stop))
        if len(taken) == 1:
            return taken[0]
        return tuple(np.concatenate(parts) for parts in zip(*taken, strict=True))


def _rows(items: Arrays | FoldedPads) -> int:
    return len(items) if isinstance(items, FoldedPads) else len(items[0])


def _slice(items: Arrays | FoldedPads, start: int, stop: int) -> Arrays:
    if isinstance(items, FoldedPads):
        return (items.slice(start, stop).unfold(),)
    return tuple([array[start:stop] for array in items])
