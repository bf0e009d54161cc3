"""Randomness for lattices: one AES-256-CTR stream, and the distributions drawn from it in constant time.

A `Stream` is seeded by the operating system for secrets, or from a 32-byte seed for public polynomials that
both parties expand (the uniform half of a fresh ciphertext travels as its seed). Expansion is part of the
wire format: `EXPANSION_VERSION` changes whenever the bytes would.

Secret distributions use a fixed number of random words per value and no branch or index that depends on
them. The uniform sampler rejects, which reveals only how many candidates were rejected, never a value.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from sottovoce.errors import ParameterError
from sottovoce.ring.forks import generation, require_same_process

EXPANSION_VERSION = 1
SEED_BYTES = 32

# The error is a centred binomial of 42 coin tosses: variance 42/4 = 10.5, σ = 3.24.
BINOMIAL_TOSSES = 21
ERROR_SIGMA = (BINOMIAL_TOSSES / 2) ** 0.5
ERROR_BOUND = BINOMIAL_TOSSES

Words = npt.NDArray[np.uint64]
Small = npt.NDArray[np.int64]


class Stream:
    """A cryptographic random stream; draws follow each other, so one stream gives one sequence of values.

    seed: 32 bytes, or None for fresh randomness from the operating system. purpose: a label that separates
    the uses of one seed. index: a further separation, for example the number of a limb or of a ciphertext.
    A stream without a seed is secret and ends at a fork: drawing from it in the child raises ProtocolError.
    """

    def __init__(self, seed: bytes | None = None, purpose: bytes = b"", index: int = 0) -> None:
        self._made = generation() if seed is None else None
        if seed is None:
            seed = os.urandom(SEED_BYTES)
        if len(seed) != SEED_BYTES:
            raise ParameterError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
        self._encryptor = _cipher(_derive(seed, purpose), index)

    def bytes(self, count: int) -> npt.NDArray[np.uint8]:
        """`count` random bytes, as a writable array."""
        if self._made is not None:
            require_same_process(self._made)
        out = np.zeros(count + 15, np.uint8)
        written = self._encryptor.update_into(out.data[:count], out.data)
        assert written == count
        return out[:count]

    def words(self, *shape: int) -> Words:
        """Uniform 64-bit words."""
        count = int(np.prod(shape, dtype=np.int64))
        return self.bytes(8 * count).view(np.uint64).reshape(shape)

    def uniform(self, modulus: int, *shape: int) -> Words:
        """Uniform in [0, modulus), modulus ≤ 2^64: words cut to its bit length, those too large rejected."""
        count = int(np.prod(shape, dtype=np.int64))
        out = np.empty(count, np.uint64)
        filled = 0
        shift = np.uint64(64 - (modulus - 1).bit_length() if modulus > 1 else 63)
        accepted = (1 << (64 - int(shift))) / modulus
        while filled < count:
            missing = count - filled
            # Slightly more than the expected number, so that a second round is rare.
            draw = self.words(int(missing * accepted * 1.01) + 16) >> shift
            good = draw[draw < np.uint64(modulus)] if modulus < 1 << 64 else draw
            take = min(missing, len(good))
            out[filled : filled + take] = good[:take]
            filled += take
        return out.reshape(shape)

    def uniform_rns(self, primes: Sequence[int], n: int, *batch: int) -> Words:
        """Uniform polynomials modulo the product of the primes: (*batch, L, N)."""
        out = np.empty((*batch, len(primes), n), np.uint64)
        for limb, prime in enumerate(primes):
            out[..., limb, :] = self.uniform(prime, *batch, n)
        return out

    def bits(self, *shape: int) -> npt.NDArray[np.uint8]:
        """Uniform bits, one per byte."""
        count = int(np.prod(shape, dtype=np.int64))
        return np.unpackbits(self.bytes((count + 7) // 8), count=count).reshape(shape)

    def ternary(self, *shape: int) -> Small:
        """Uniform in {−1, 0, 1}, signed 64-bit. Bias below 2^-31: floor(3u/2^32) of a 32-bit word u."""
        count = int(np.prod(shape, dtype=np.int64))
        words = self.bytes(4 * count).view(np.uint32).astype(np.uint64)
        return ((words * np.uint64(3)) >> np.uint64(32)).view(np.int64).reshape(shape) - 1

    def error(self, *shape: int) -> Small:
        """RLWE errors: centred binomial, σ = 3.24, |e| ≤ 21, signed 64-bit."""
        words = self.words(*shape)
        mask = np.uint64((1 << BINOMIAL_TOSSES) - 1)
        heads = np.bitwise_count(words & mask).view(np.uint8).astype(np.int64)
        tails = np.bitwise_count((words >> np.uint64(BINOMIAL_TOSSES)) & mask).astype(np.int64)
        difference: Small = heads - tails
        return difference


def expand(seed: bytes, purpose: bytes, primes: Sequence[int], n: int, index: int = 0) -> Words:
    """The public uniform polynomial of a seed: (L, N), each limb uniform modulo its prime.

    Both parties get the same array on every machine: AES-256-CTR under a key hashed from the seed and the
    purpose, limb by limb, 64-bit little-endian words cut to the prime's bit length, too large ones skipped.
    The values may be read as coefficients or as evaluations. index: the number of the polynomial under this
    seed and purpose.
    """
    out = np.empty((len(primes), n), np.uint64)
    for limb, prime in enumerate(primes):
        out[limb] = Stream(seed, purpose, index * len(primes) + limb).uniform(prime, n)
    return out


def fresh_seed() -> bytes:
    """32 bytes from the operating system."""
    return os.urandom(SEED_BYTES)


def _derive(seed: bytes, purpose: bytes) -> bytes:
    label = b"sottovoce expand" + EXPANSION_VERSION.to_bytes(2, "little") + len(purpose).to_bytes(4, "little")
    return hashlib.sha256(label + purpose + seed).digest()


def _cipher(key: bytes, index: int) -> CipherContext:
    if not 0 <= index < 1 << 64:
        raise ParameterError(f"a stream index must be in [0, 2^64), not {index}")
    # The index fills the upper half of the counter block; 2^64 blocks per index never meet the next one.
    nonce = index.to_bytes(8, "big") + bytes(8)
    return Cipher(algorithms.AES256(key), modes.CTR(nonce)).encryptor()
