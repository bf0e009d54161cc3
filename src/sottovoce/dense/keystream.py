"""Long arrays from short seeds, at any place: rows of AES-128 counter streams, each under a key of its own.

A row is addressed by its number and a position in it, so that both the maker of a batch, who works matrix by
matrix, and the user of one token, who needs one row, expand exactly what they need. The bytes are part of the
wire format where the seed is public.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from sottovoce import _native
from sottovoce.errors import ParameterError
from sottovoce.ring.sampling import SEED_BYTES

KEYSTREAM_VERSION = 1

Words = npt.NDArray[np.uint64]
Keys = npt.NDArray[np.uint8]


def row_keys(seed: bytes, purpose: bytes, first: int, count: int) -> Keys:
    """(count, 16): the keys of rows first, first + 1, … under a seed and a label that separates its uses."""
    if len(seed) != SEED_BYTES:
        raise ParameterError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
    label = b"sottovoce keystream" + KEYSTREAM_VERSION.to_bytes(2, "little")
    digest = hashlib.sha256(label + len(purpose).to_bytes(4, "little") + purpose + seed).digest()
    master = np.frombuffer(digest[:16], np.uint8).reshape(1, 16).copy()
    keys = np.empty((1, count, 16), np.uint8)
    _native.aes_ctr(master, first, keys)
    return keys.reshape(count, 16)


def row_words(keys: Keys, first: int, count: int) -> Words:
    """(rows, count): words first … first + count − 1 of every row; `first` even."""
    if first % 2:
        raise ParameterError("a keystream is read from an even word on")
    blocks = (count + 1) // 2
    out = np.empty((len(keys), blocks, 16), np.uint8)
    _native.aes_ctr(keys, first // 2, out)
    return out.reshape(len(keys), -1).view(np.uint64)[:, :count]


def row_residues(keys: Keys, count: int, modulus: int) -> Words:
    """(rows, count): uniform residues up to a bias of 2^-64, two words each."""
    out = np.empty((len(keys), count), np.uint64)
    words = row_words(keys, 0, 2 * count).reshape(-1, 2)
    _native.scale_to_modulus(words, 0, modulus, out.reshape(-1))
    return out
