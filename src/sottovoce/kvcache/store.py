"""The server's ciphertexts of a cache, with a noise estimate for each block, and their bytes on disk."""

from __future__ import annotations

import math
import struct

import numpy as np
import numpy.typing as npt

from sottovoce.bgv import Ciphertext, Parameters, noise
from sottovoce.errors import CorruptFileError
from sottovoce.rlwe.wire import frame, pack_residues, residue_bytes, unframe, unpack_residues

Words = npt.NDArray[np.uint64]

NOISE_LIMIT = 20.0  # far above any sum of appends, far below what a product with a query allows


class Store:
    """Encrypted keys or values: (blocks, G) ciphertexts, every one a sum of fresh appends and plaintexts.

    data: (blocks, G, 2, L, N) NTT form. noise: (blocks,) lg of the standard deviation, from public bounds.
    """

    def __init__(self, parameters: Parameters, groups: int) -> None:
        self.parameters, self.groups = parameters, groups
        self.data: Words = np.zeros(self._shape(0), dtype=np.uint64)
        self.noise: list[float] = []
        self.changed: set[int] = set()  # blocks that were added to since somebody cleared this

    def __len__(self) -> int:
        return len(self.noise)

    def add(self, block: int, fresh: Ciphertext | None, plain: Words) -> None:
        """Add an encrypted share (batch of G, or None) and a plaintext share (G, L, N) to a block."""
        if block >= len(self):
            grown = np.zeros(self._shape(block + 1), dtype=np.uint64)
            grown[: len(self)] = self.data
            self.data = grown
            self.noise += [-math.inf] * (block + 1 - len(self.noise))
        self.changed.add(block)
        ring, target = self.parameters.ring(), self.data[block]
        if fresh is not None:
            ring.add(target, np.ascontiguousarray(fresh.data), target)
            self.noise[block] = noise.add(self.noise[block], fresh.noise)
        target[:, 0] = ring.add(np.ascontiguousarray(target[:, 0]), plain)
        self.noise[block] = noise.add_plain(self.noise[block])

    def block(self, block: int) -> Ciphertext:
        """The G ciphertexts of one block."""
        return Ciphertext(self.parameters, self.data[block], self.noise[block])

    def group(self, group: int, blocks: list[int]) -> Ciphertext:
        """One group's ciphertexts of some blocks."""
        return Ciphertext(self.parameters, self.data[blocks, group], max(self.noise[b] for b in blocks))

    def all(self) -> Ciphertext:
        """All ciphertexts, a batch of blocks x G."""
        flat = self.data.reshape(-1, *self.data.shape[2:])
        return Ciphertext(self.parameters, flat, max(self.noise))

    def adopt(self, data: Words, bits: list[float]) -> None:
        """Go on with saved blocks: data (blocks, G, 2, L, N), noises. CorruptFileError if they are none."""
        primes = np.array(self.parameters.primes, np.uint64)[:, None]
        if data.dtype != np.uint64 or data.shape != self._shape(len(bits)) or (data >= primes).any():
            raise CorruptFileError("a saved cache holds something that is no ciphertext of this model")
        if any(not 0 <= b < NOISE_LIMIT for b in bits):
            raise CorruptFileError("a saved cache states a noise that no cache has")
        self.data, self.noise = np.ascontiguousarray(data), list(bits)

    def to_bytes(self) -> bytes:
        """Block count, noise estimates, residues."""
        head = struct.pack(f"<I{len(self)}d", len(self), *self.noise)
        return frame("ciphertext", self.parameters, head + pack_residues(self.data, self.parameters.primes))

    @classmethod
    def from_bytes(cls, parameters: Parameters, groups: int, data: bytes) -> Store:
        """Raises a FrameError, IntegrityError, mismatch error or CorruptFileError: nothing is used
        unchecked."""
        payload = unframe("ciphertext", parameters, data)
        store = cls(parameters, groups)
        count = struct.unpack_from("<I", payload)[0] if payload.nbytes >= 4 else -1
        polynomials = count * groups * 2
        body = 4 + 8 * count
        if count < 0 or payload.nbytes != body + polynomials * residue_bytes(
            parameters.primes, parameters.degree
        ):
            raise CorruptFileError("a saved cache announces another number of blocks than it holds")
        store.noise = list(struct.unpack_from(f"<{count}d", payload, 4))
        if any(not 0 <= bits < NOISE_LIMIT for bits in store.noise):
            raise CorruptFileError("a saved cache states a noise that no cache has")
        if count:
            store.data = unpack_residues(payload[body:], parameters.primes, store._shape(count))
        return store

    def _shape(self, blocks: int) -> tuple[int, ...]:
        return (blocks, self.groups, 2, self.parameters.limbs, self.parameters.degree)
