"""Correlated OTs in one direction: SoftSpokenOT (Roy, 2022) with k = 8, semi-honest.

The sender holds a secret Δ of 128 bits. Every index i gives the sender a row q_i and the receiver a random
bit b_i and the row t_i = q_i ⊕ b_i·Δ. Tree g of 16 covers byte g of Δ: the receiver knows all 256 leaves, the
sender all but leaf Δ_g. With r_x the stream of leaf x, u_g = Σ r_x and v_g = Σ x·r_x (bytes of x, bit by bit)
at the receiver, the sender computes w_g = Σ (x ⊕ Δ_g)·r_x = v_g ⊕ Δ_g·u_g, where the unknown leaf has
coefficient 0. The receiver takes b = u_0 and sends u_g ⊕ u_0 for the other fifteen trees, which turns every
w_g into v_g ⊕ Δ_g·b.

Cost: 15/8 bytes from receiver to sender and 32 AES blocks per index at each party.

Indices are numbered from 0 and never repeat: streams are read forward only, every row leaves its buffer once,
and an object can be neither copied nor saved nor used after a fork, so no restart replays one.
"""

from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from sottovoce import _native
from sottovoce.errors import ProtocolError
from sottovoce.ring.forks import generation, require_same_process

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]

TREES = 16
GRANULE = 1024  # indices are produced in multiples of this: 128 bytes of a bit column


class _Direction:
    """What both ends share: the streams' position, the buffer of rows, and the numbering."""

    def __init__(self, leaves: U8, hash_key: bytes, threads: int) -> None:
        self._process = generation()
        self._leaves = leaves
        self.hash_key = np.frombuffer(hash_key, np.uint8)
        self._threads = threads
        self._rows: U64 = np.empty((0, 2), np.uint64)
        self.produced = 0  # indices made so far
        self.issued = 0  # indices handed out so far: the next index to hand out

    @property
    def available(self) -> int:
        return len(self._rows)

    def _fold(self, count: int) -> tuple[U8, U8]:
        """The next `count` indices of all trees: sums (16, bytes), weighted (128, bytes)."""
        require_same_process(self._process)
        sums = np.empty((TREES, count // 8), np.uint8)
        weighted = np.empty((TREES * 8, count // 8), np.uint8)
        _native.ggm_fold(self._leaves, self.produced // 128, sums, weighted, self._threads)
        self.produced += count
        return sums, weighted

    def _store(self, columns: U8) -> None:
        left = len(self._rows)
        rows = np.empty((left + 8 * columns.shape[1], 2), np.uint64)
        rows[:left] = self._rows
        _native.transpose_128(columns, rows[left:].view(np.uint8))
        self._rows = rows

    def _take(self, n: int) -> tuple[int, U64]:
        """The next n rows and the index of the first."""
        require_same_process(self._process)
        if n > len(self._rows):
            raise ProtocolError(f"{n} oblivious transfers were asked for with {len(self._rows)} prepared")
        rows, self._rows = self._rows[:n], self._rows[n:]
        first = self.issued
        self.issued += n
        if self.issued + len(self._rows) != self.produced:
            raise ProtocolError("the numbering of oblivious transfers is inconsistent; end the session")
        return first, rows

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("oblivious transfers cannot be copied or saved: an index must never be used twice")


class CotSender(_Direction):
    """The end that knows Δ."""

    def __init__(self, delta: U8, leaves: U8, hash_key: bytes, threads: int = 1) -> None:
        # Leaf y of tree g is the peer's leaf y ^ Δ_g, so that its coefficient is y, and leaf 0 the unknown
        # one.
        number = np.arange(256)
        turned = np.stack([leaves[g, number ^ int(delta[g])] for g in range(TREES)])
        super().__init__(turned, hash_key, threads)
        self._delta = delta
        self._columns: U8 | None = None

    @property
    def delta(self) -> U64:
        """(2,) low and high word."""
        return self._delta.view(np.uint64)

    def begin(self, count: int) -> int:
        """Do the local part of `count` more indices; returns the size of the receiver's message."""
        _, self._columns = self._fold(count)
        return (TREES - 1) * count // 8

    def finish(self, message: memoryview) -> None:
        assert self._columns is not None
        corrections = np.zeros((TREES, self._columns.shape[1]), np.uint8)
        corrections[1:] = np.frombuffer(message, np.uint8).reshape(TREES - 1, -1)
        _native.xor_selected(self._columns, corrections, self._delta)
        self._store(self._columns)
        self._columns = None

    def take(self, n: int) -> tuple[int, U64]:
        """(first index, rows q (n, 2))."""
        return self._take(n)


class CotReceiver(_Direction):
    """The end with random choice bits."""

    def __init__(self, leaves: U8, hash_key: bytes, threads: int = 1) -> None:
        super().__init__(leaves, hash_key, threads)
        self._bits: U8 = np.empty(0, np.uint8)

    def extend(self, count: int) -> U8:
        """Make `count` more indices; returns the message to the sender (15, count/8)."""
        sums, columns = self._fold(count)
        self._store(columns)
        self._bits = np.concatenate([self._bits, np.unpackbits(sums[0], bitorder="little")])
        message: U8 = sums[1:] ^ sums[0]
        return message

    def take(self, n: int) -> tuple[int, U8, U64]:
        """(first index, choice bits (n,), rows t (n, 2))."""
        first, rows = self._take(n)
        bits, self._bits = self._bits[:n], self._bits[n:]
        return first, bits, rows
