"""What a session of scx is saved as: rows of keys and values of new tokens, and the rest of a half whenever
it changes.

The rest is small: marks, the row key, and what belongs to the last block.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sottovoce.engines.base import Piece, Pieces
from sottovoce.engines.scx.arrays import Arrays
from sottovoce.engines.scx.cache import KeyValues
from sottovoce.errors import CorruptFileError
from sottovoce.kvcache.saved import joined_rows, rows_name

_REST = "rest"


class Half(Protocol):
    """One party's half of a session, of either profile."""

    @property
    def caches(self) -> list[KeyValues]: ...
    def save(self) -> dict[str, npt.NDArray[Any]]: ...
    def load(self, state: dict[str, npt.NDArray[Any]]) -> None: ...
    def truncate(self, length: int) -> None: ...


def changed(half: Half, first: int) -> dict[str, Piece]:
    """Rows of the tokens from `first` on, and the rest as it is now."""
    pieces: dict[str, Piece] = {_REST: half.save()}
    if half.caches:
        pieces[rows_name(first)] = _rows(half, first)
    return pieces


def restore(half: Half, arrays: Arrays, pieces: Pieces, length: int) -> None:
    """A new half as it was with `length` tokens. CorruptFileError for what `changed` did not write."""
    rest = next((piece for name, piece in reversed(list(pieces)) if name == _REST), None)
    try:
        if rest is None:
            raise KeyError(_REST)
        half.load(rest)
    except (KeyError, ValueError, IndexError) as error:
        raise CorruptFileError("the saved session does not fit this engine and model") from error
    if half.caches:
        rows = joined_rows(pieces, length, _rows(half, 0))
        for cache, k, v in zip(half.caches, rows["k"], rows["v"], strict=True):
            cache.append(arrays.put(k), arrays.put(v))
    half.truncate(length)


def _rows(half: Half, first: int) -> Piece:
    return {
        "k": np.stack([cache.k.save()[first:] for cache in half.caches]),
        "v": np.stack([cache.v.save()[first:] for cache in half.caches]),
    }
