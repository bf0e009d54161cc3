"""Noise that is added before something is sent, and its image under the server's matrix, made beforehand.

The server returns (x + α)·W; the user takes αW away. A pair (α, αW) is used once and then forgotten.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from sottovoce.engines.scx.arrays import Array, Arrays, namespace
from sottovoce.ring.forks import generation, require_same_process

Draw = Callable[[int], npt.NDArray[np.float64]]
Image = Callable[[Array], Array]
_BATCH = 64


class NoiseStock:
    """draw(n): n rows of noise. image: what the server will make of noise, without biases.

    Cost of a batch: one product of its rows with W, at the user.
    """

    def __init__(self, arrays: Arrays, draw: Draw, image: Image, dtype: type = np.float32) -> None:
        self._arrays, self._draw, self._image, self._dtype = arrays, draw, image, dtype
        self._ready: tuple[Array, Array] | None = None
        self._process = generation()
        self.made = self.used = 0

    @property
    def ready(self) -> int:
        return 0 if self._ready is None else int(self._ready[0].shape[0])

    def make(self, rows: int) -> None:
        """Have at least `rows` in stock."""
        if self.ready >= rows:
            return
        fresh = self._pair(rows - self.ready)
        if self._ready is not None:
            xp = namespace(fresh[0])
            a, b = (xp.concat([old, new], axis=0) for old, new in zip(self._ready, fresh, strict=True))
            fresh = a, b
        self._ready = fresh

    def take(self, rows: int) -> tuple[Array, Array]:
        """(α, αW) for so many rows, which nobody gets again. Large requests are made to measure."""
        require_same_process(self._process)
        if self._ready is None or self.ready < rows:
            if rows >= _BATCH:
                self.used += rows
                return self._pair(rows)
            self.make(_BATCH)
        assert self._ready is not None
        self.used += rows
        taken = self._ready[0][:rows, ...], self._ready[1][:rows, ...]
        self._ready = self._ready[0][rows:, ...], self._ready[1][rows:, ...]
        return taken

    def _pair(self, rows: int) -> tuple[Array, Array]:
        alpha = self._arrays.put(self._draw(rows).astype(self._dtype))
        self.made += rows
        return alpha, self._image(alpha)
