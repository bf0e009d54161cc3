"""Keys and values of one block in an array library: rows that grow."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.engines.scx.arrays import Array, Arrays


class Rows:
    """(n, ...) rows behind each other; memory doubles, so that appending a row does not copy the others."""

    def __init__(self, arrays: Arrays, shape: tuple[int, ...], dtype: type = np.float32) -> None:
        self._arrays, self._shape, self._dtype = arrays, shape, dtype
        self.clear()

    def clear(self) -> None:
        self.length = 0
        self._memory = self._arrays.put(np.empty((0, *self._shape), self._dtype))

    def append(self, rows: Array) -> Array:
        """Write rows behind the others and return all."""
        end = self.length + rows.shape[0]
        if self._memory.shape[0] < end:
            grown = self._arrays.put(np.zeros((max(64, 2 * end), *self._shape), self._dtype))
            grown[: self.length, ...] = self.all
            self._memory = grown
        self._memory[self.length : end, ...] = rows
        self.length = end
        return self.all

    @property
    def all(self) -> Array:
        return self._memory[: self.length, ...]

    def truncate(self, length: int) -> None:
        self.length = min(self.length, length)

    def save(self) -> npt.NDArray[Any]:
        return np.array(self._arrays.get(self.all))

    def load(self, rows: npt.NDArray[Any]) -> None:
        self.clear()
        self.append(self._arrays.put(np.ascontiguousarray(rows, self._dtype)))


class KeyValues:
    """Keys and values of one block."""

    def __init__(self, arrays: Arrays, kv_heads: int, head_dim: int) -> None:
        self.k, self.v = (Rows(arrays, (kv_heads, head_dim)) for _ in "kv")

    def append(self, k: Array, v: Array) -> tuple[Array, Array]:
        return self.k.append(k), self.v.append(v)

    def truncate(self, length: int) -> None:
        self.k.truncate(length)
        self.v.truncate(length)
