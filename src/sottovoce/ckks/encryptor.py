"""Encryption: symmetric with a seeded uniform half (half the bytes), or under the public key."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from sottovoce.ckks.ciphertext import Ciphertext, Plaintext, check_header
from sottovoce.ckks.keys import PublicKey
from sottovoce.ckks.parameters import Parameters
from sottovoce.ckks.secret import KEY_ID_BYTES, SecretKey
from sottovoce.ckks.switching import uniform_rows
from sottovoce.errors import FrameError, LevelError, ParameterError
from sottovoce.ring import sampling
from sottovoce.rlwe.randomness import errors, ternary
from sottovoce.rlwe.wire import (
    HEADER_BYTES,
    Buffer,
    frame,
    pack_residues,
    residue_bytes,
    unframe,
    unpack_residues,
)

Words = npt.NDArray[np.uint64]

_PURPOSE = b"fresh ciphertext"
# Level, slots, scale.
_META = struct.Struct("<HxxId")


class Encryptor:
    """Encrypts with a SecretKey (the smallest noise, and `encrypt_bytes`) or with a PublicKey."""

    def __init__(self, parameters: Parameters, key: SecretKey | PublicKey) -> None:
        if key.parameters != parameters:
            raise ParameterError("the key belongs to other parameters")
        self.parameters, self.key = parameters, key

    def encrypt(self, plaintext: Plaintext) -> Ciphertext:
        """A fresh ciphertext at the plaintext's level and scale."""
        if isinstance(self.key, SecretKey):
            seed = sampling.fresh_seed()
            halves = [
                self._symmetric(plaintext, seed, self.key),
                _uniform(self.parameters, seed, plaintext.level),
            ]
        else:
            halves = self._public(plaintext, self.key)
        return _ciphertext(plaintext, np.stack(halves), self.key.key_id)

    def encrypt_bytes(self, plaintext: Plaintext) -> bytes:
        """A fresh symmetric ciphertext as bytes for `load_fresh`: the uniform half travels as its seed."""
        if not isinstance(self.key, SecretKey):
            raise ParameterError("seeded encryption needs the SecretKey")
        seed = sampling.fresh_seed()
        b = self._symmetric(plaintext, seed, self.key)
        meta = _META.pack(plaintext.level, plaintext.slots, plaintext.scale)
        packed = pack_residues(b, self.parameters.primes[: plaintext.level + 1])
        return frame("fresh ciphertext", self.parameters, self.key.key_id + meta + seed + packed)

    def _symmetric(self, plaintext: Plaintext, seed: bytes, key: SecretKey) -> Words:
        ring = self.parameters.ring(plaintext.level)
        b = ring.ntt(errors(sampling.Stream(), ring.primes, ring.n, 1)[0])
        ring.add(b, full(plaintext), b)
        a = _uniform(self.parameters, seed, plaintext.level)
        return ring.sub(b, ring.mul(a, key.ntt(ring.primes), a), b)

    def _public(self, plaintext: Plaintext, key: PublicKey) -> list[Words]:
        if plaintext.level > key.level:
            raise LevelError(
                f"the public key encrypts at levels up to {key.level}, not at level {plaintext.level}"
            )
        ring, stream = self.parameters.ring(plaintext.level), sampling.Stream()
        u = ring.ntt(ternary(stream, ring.primes, ring.n, 1)[0])
        halves = []
        for part in range(2):
            half = ring.ntt(errors(stream, ring.primes, ring.n, 1)[0])
            halves.append(ring.mul_add(half, u, key.data[part, : ring.limbs]))
        ring.add(halves[0], full(plaintext), halves[0])
        return halves


def fresh_bytes(parameters: Parameters, level: int) -> int:
    """The size of `Encryptor.encrypt_bytes` at a level."""
    head = HEADER_BYTES + KEY_ID_BYTES + _META.size + sampling.SEED_BYTES
    return head + residue_bytes(parameters.primes[: level + 1], parameters.degree)


def load_fresh(parameters: Parameters, data: Buffer) -> Ciphertext:
    """The ciphertext of `Encryptor.encrypt_bytes`.

    FrameError, IntegrityError or a mismatch error for anything else.
    """
    payload = unframe("fresh ciphertext", parameters, data)
    at, start = KEY_ID_BYTES + _META.size, KEY_ID_BYTES + _META.size + sampling.SEED_BYTES
    if payload.nbytes < start:
        raise FrameError("a fresh ciphertext is truncated")
    level, slots, scale = _META.unpack(payload[KEY_ID_BYTES:at])
    check_header(parameters, level, slots, scale)
    primes = parameters.primes[: level + 1]
    if payload.nbytes - start != residue_bytes(primes, parameters.degree):
        raise FrameError("the size of a fresh ciphertext does not match its header")
    b = unpack_residues(payload[start:], primes, (level + 1, parameters.degree))
    pair = np.stack([b, _uniform(parameters, bytes(payload[at:start]), level)])
    return Ciphertext(parameters, pair, scale, slots, bytes(payload[:KEY_ID_BYTES]))


def full(plaintext: Plaintext) -> Words:
    """(L, N): a plaintext's NTT form at full length."""
    degree, size = plaintext.parameters.degree, plaintext.data.shape[1]
    return plaintext.data if size == degree else np.repeat(plaintext.data, degree // size, axis=1)


def _uniform(parameters: Parameters, seed: bytes, level: int) -> Words:
    return uniform_rows(seed, _PURPOSE, parameters.primes[: level + 1], parameters.degree)


def _ciphertext(plaintext: Plaintext, data: Words, key_id: bytes) -> Ciphertext:
    if plaintext.wide:
        raise ParameterError("a plaintext for sums modulo Q·P cannot be encrypted")
    return Ciphertext(plaintext.parameters, data, plaintext.scale, plaintext.slots, key_id)
