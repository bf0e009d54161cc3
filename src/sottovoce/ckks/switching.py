"""Switching keys: half of each is uniform and never stored, only the seed it is expanded from.

A switching key of level l has D digits; digit d covers the chain primes [d·α, (d+1)·α). Its stored half is
b_d = −a_d·s + e_d + P·g_d·s', g_d being 1 modulo the primes of digit d and 0 modulo the other chain primes:
an encryption under s of multiples of s', modulo Q_l·P. A key serves every level up to its own, so it is
generated at the highest level at which it is used, never above. Memory: D·(l + 1 + α)·N words of 8 bytes, 82
MB at the top of BOOT16; on the wire a little less.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sottovoce import _native
from sottovoce.ckks.ciphertext import empty
from sottovoce.ckks.parameters import Parameters
from sottovoce.ckks.secret import SecretKey
from sottovoce.errors import FrameError, IntegrityError
from sottovoce.ring import RingContext, context, sampling, threads
from sottovoce.rlwe.randomness import errors
from sottovoce.rlwe.wire import pack_residues, residue_bytes, unpack_residues_into

Words = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]

EXPANSION_KEY_BYTES = 16
# Level, special primes, purpose.
_META = struct.Struct("<HHi")


def expansion_keys(seed: bytes, purpose: bytes, rows: tuple[int, ...]) -> Bytes:
    """One AES-128 key per uniform row: (*rows, 16), hashed from seed, purpose and the number of the row."""
    count = int(np.prod(rows))
    stem = hashlib.blake2b(b"sottovoce ckks" + len(purpose).to_bytes(2, "little") + purpose + seed)
    out = bytearray()
    for row in range(count):
        fork = stem.copy()
        fork.update(row.to_bytes(8, "little"))
        out += fork.digest()[:EXPANSION_KEY_BYTES]
    return np.frombuffer(bytes(out), np.uint8).reshape(*rows, EXPANSION_KEY_BYTES)


def uniform_rows(seed: bytes, purpose: bytes, primes: tuple[int, ...], n: int, index: int = 0) -> Words:
    """(L, N): the uniform polynomial number `index` of a seed. Both parties get the same on every machine."""
    keys = expansion_keys(seed, purpose + index.to_bytes(8, "little"), (len(primes),))
    out = np.empty((len(primes), n), np.uint64)
    _native.ckks_expand(keys, list(primes), out, threads())
    return out


@dataclass(frozen=True, eq=False)
class SwitchingKey:
    """Turns multiples of s' into a ciphertext under s, at levels up to `level`.

    b: (D, level + 1 + K, N) NTT form, chain primes then the first K = `special` special primes. seed: of the
    uniform halves. uniform: their expansion keys, (D, level + 1 + K, 16).
    """

    parameters: Parameters
    level: int
    special: int
    seed: bytes = field(repr=False)
    b: Words = field(repr=False)
    uniform: Bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "uniform", expansion_keys(self.seed, b"switching key", self.b.shape[:2]))

    @classmethod
    def generate(
        cls, secret: SecretKey, source: Words, level: int, special: int | None = None, element: int = 1
    ) -> SwitchingKey:
        """source: s', (level + 1, N) NTT form. element: the key is under s(X^element) instead of s.

        special: how many special primes, default all. For the ephemeral secret the modulus stays below
        121 bits or ParameterError is raised (`SecretKey.ntt`).
        """
        parameters = secret.parameters
        special = parameters.alpha if special is None else special
        ring = key_ring(parameters, level, special)
        s = secret.ntt(ring.primes)
        if element != 1:
            s = ring.automorphism_ntt(s, element)
        seed, digits = sampling.fresh_seed(), -(-(level + 1) // special)
        keys = expansion_keys(seed, b"switching key", (digits, ring.limbs))
        stream, b = sampling.Stream(), empty(digits, ring.limbs, ring.n)
        gadget = parameters.ring(level).mul_scalar(source, math.prod(ring.primes[level + 1 :]))
        a = np.empty((ring.limbs, ring.n), np.uint64)
        for d in range(digits):
            _native.ckks_expand(keys[d], list(ring.primes), a, threads())
            row = ring.ntt(errors(stream, ring.primes, ring.n, 1)[0])
            ring.sub(row, ring.mul(a, s, a), b[d])
            for limb in range(d * special, min((d + 1) * special, level + 1)):
                single = context(ring.n, (ring.primes[limb],))
                part = b[d, limb : limb + 1]
                single.add(part, gadget[limb : limb + 1], part)
        return cls(parameters, level, special, seed, b)

    @property
    def nbytes(self) -> int:
        """Memory of the stored half."""
        return self.b.nbytes

    def payload(self, purpose: int) -> bytes:
        """Level, special primes, purpose, seed and the b halves at the bit lengths of their primes."""
        ring = key_ring(self.parameters, self.level, self.special)
        packed = pack_residues(self.b, ring.primes)
        return _META.pack(self.level, self.special, purpose) + self.seed + packed

    @classmethod
    def from_payload(
        cls, parameters: Parameters, payload: memoryview
    ) -> tuple[SwitchingKey, int, memoryview]:
        """The key, its purpose, and what follows it. FrameError or IntegrityError for anything else."""
        if payload.nbytes < _META.size + sampling.SEED_BYTES:
            raise FrameError("a switching key is truncated")
        level, special, purpose = _META.unpack(payload[: _META.size])
        if level > parameters.top or not 1 <= special <= parameters.alpha:
            raise IntegrityError("a switching key has an impossible level or number of special primes")
        ring, digits = key_ring(parameters, level, special), -(-(level + 1) // special)
        size = digits * residue_bytes(ring.primes, ring.n)
        start = _META.size + sampling.SEED_BYTES
        if payload.nbytes < start + size:
            raise FrameError("a switching key is truncated")
        seed = bytes(payload[_META.size : start])
        b = empty(digits, ring.limbs, ring.n)
        unpack_residues_into(payload[start : start + size], ring.primes, b[:, None])
        return cls(parameters, level, special, seed, b), purpose, payload[start + size :]


def key_ring(parameters: Parameters, level: int, special: int) -> RingContext:
    """Chain primes up to a level, then the first `special` special primes."""
    return context(parameters.degree, (*parameters.primes[: level + 1], *parameters.special[:special]))
