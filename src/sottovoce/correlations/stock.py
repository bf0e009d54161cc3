"""What has been made and not yet handed out: rows that leave in order, once."""

from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = tuple[npt.NDArray[Any], ...]


class Stock:
    """Items of one kind as parallel arrays with a common leading axis; first in, first out."""

    def __init__(self) -> None:
        self._arrays: Arrays = ()

    def __len__(self) -> int:
        return len(self._arrays[0]) if self._arrays else 0

    def put(self, arrays: Arrays) -> None:
        """Append items."""
        if len(self):
            arrays = tuple(np.concatenate(pair) for pair in zip(self._arrays, arrays, strict=True))
        self._arrays = arrays

    def take(self, n: int) -> Arrays:
        """Remove and return the first n items; the stock must hold them."""
        assert n <= len(self), "a correlation was asked for that has not been made"
        taken = tuple(array[:n] for array in self._arrays)
        self._arrays = tuple(array[n:] for array in self._arrays)
        return taken
