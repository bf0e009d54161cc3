"""A session's encrypted cache as named arrays, and back.

After every step the server saves all keys and values: a group or lane changes with every token. The last two
states are kept under two names, so that a session whose client missed the last answer goes on from the one
before. About 25 MB a layer at N = 2^16.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.ckks import Ciphertext, Parameters
from sottovoce.engines.base import Piece, Pieces
from sottovoce.engines.fhe.program import Program
from sottovoce.errors import CorruptFileError, SottovoceError

Bytes = npt.NDArray[np.uint8]


def save_cache(program: Program[Ciphertext], public: Sequence[int], functions: bytes) -> dict[str, Piece]:
    """One piece. functions: digest of those that the cache was made with."""
    piece: Piece = {
        "length": np.array([program.length], np.int64),
        "public": np.array(list(public), np.int64),
        "functions": np.frombuffer(functions, np.uint8),
    }
    for layer, cache in enumerate(program.caches):
        for kind, entries in (("k", cache.keys), ("v", cache.values)):
            for i, x in enumerate(entries):
                piece[f"{kind}.{layer}.{i}"] = np.frombuffer(x.to_bytes(), np.uint8)
    return {f"cache.{program.length % 2}": piece}


def find_piece(pieces: Pieces, length: int) -> Mapping[str, npt.NDArray[Any]]:
    """The last saved state of `length` tokens. CorruptFileError if there is none."""
    for name, piece in reversed(pieces):
        if name == f"cache.{length % 2}" and _integers(piece, "length", 1).tolist() == [length]:
            return piece
    raise CorruptFileError(f"the saved session holds no cache of {length} tokens")


def public_tokens(piece: Mapping[str, npt.NDArray[Any]]) -> list[int]:
    return [int(token) for token in _integers(piece, "public", None)]


def load_cache(
    program: Program[Ciphertext],
    piece: Mapping[str, npt.NDArray[Any]],
    parameters: Parameters,
    key_id: bytes | None,
    functions: bytes,
) -> None:
    """Into a program that holds the public tokens. CorruptFileError if something is missing or foreign."""
    made_with = piece.get("functions")
    if made_with is None or made_with.tobytes() != functions:
        raise CorruptFileError(
            "the saved session's cache was made by another release, or before this model was measured anew;"
            " begin a new session"
        )
    program.length = int(piece["length"][0])
    groups = -(-program.private // program.shape.heads.t)
    for layer, cache in enumerate(program.caches):
        for kind, entries, count in (("k", cache.keys, program.blocks.classes), ("v", cache.values, groups)):
            for i in range(count):
                raw = piece.get(f"{kind}.{layer}.{i}")
                if raw is None or raw.dtype != np.uint8 or raw.ndim != 1:
                    raise CorruptFileError("the saved session's cache is incomplete")
                try:
                    x = Ciphertext.from_bytes(parameters, raw.tobytes())
                except SottovoceError:
                    raise CorruptFileError(
                        "the saved session's cache was made with other parameters, or is damaged"
                    ) from None
                if x.key_id != key_id or x.slots != program.shape.n:
                    raise CorruptFileError("the saved session's cache belongs to another key or model")
                entries.append(x)


def _integers(piece: Mapping[str, npt.NDArray[Any]], name: str, size: int | None) -> npt.NDArray[np.int64]:
    values = piece.get(name)
    if values is None or values.dtype != np.int64 or values.ndim != 1 or size not in (None, len(values)):
        raise CorruptFileError("the saved session's cache is malformed")
    return values
