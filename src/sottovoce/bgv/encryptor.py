"""Encryption: symmetric with a seeded uniform half (what the data party sends), or under the public key."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sottovoce import _native
from sottovoce.bgv import noise
from sottovoce.bgv.ciphertext import Ciphertext, Plaintext
from sottovoce.bgv.encoder import Encoder
from sottovoce.errors import FrameError, ParameterError
from sottovoce.ring import sampling, threads
from sottovoce.rlwe import Parameters, PublicKey, SecretKey
from sottovoce.rlwe.randomness import errors, expand_into, ternary
from sottovoce.rlwe.wire import Buffer, as_bytes, pack_residues, residue_bytes, unpack_residues_into

Words = npt.NDArray[np.uint64]

_PURPOSE = b"fresh ciphertexts"


class Encryptor:
    """Encrypts with a SecretKey (noise 1.7 bits, half the bytes) or with a PublicKey (8.4 bits)."""

    def __init__(self, parameters: Parameters, key: SecretKey | PublicKey) -> None:
        if key.parameters != parameters:
            raise ParameterError("the key belongs to other parameters")
        self.parameters, self.key = parameters, key
        self.encoder = Encoder(parameters)

    def encrypt(self, plaintext: Plaintext) -> Ciphertext:
        """One ciphertext per plaintext of the batch."""
        if isinstance(self.key, SecretKey):
            return self.encrypt_symmetric(plaintext)
        return self.encrypt_public(plaintext)

    def encrypt_symmetric(self, plaintext: Plaintext) -> Ciphertext:
        """With the secret key."""
        parameters = self.parameters
        seed = sampling.fresh_seed()
        a, b = self._symmetric(plaintext.coefficients.reshape(-1, parameters.degree), seed)
        data = np.stack([b, a], axis=1).reshape(*plaintext.batch, 2, *a.shape[1:])
        return Ciphertext(parameters, data, noise.FRESH)

    def encrypt_public(self, plaintext: Plaintext) -> Ciphertext:
        """With the public key: (u·b + p·e0 + m, u·a + p·e1)."""
        if not isinstance(self.key, PublicKey):
            raise ParameterError("public-key encryption needs a PublicKey")
        parameters, ring = self.parameters, self.parameters.ring()
        rows = plaintext.coefficients.reshape(-1, parameters.degree)
        zero = encrypt_zero(self.key, len(rows))
        ring.mul_scalar(zero, parameters.plaintext, zero)
        message = self.encoder.to_ntt(Plaintext(parameters, rows))
        zero[:, 0] = ring.add(np.ascontiguousarray(zero[:, 0]), message)
        data = zero.reshape(*plaintext.batch, *zero.shape[1:])
        return Ciphertext(parameters, data, noise.fresh_public(parameters))

    def encrypt_many(self, slots: Words) -> bytes:
        """(B, N) slots -> `fresh_bytes(parameters, B)` bytes for `load_many`: a seed, then the B halves.

        154 KB per ciphertext of the SIMD set. Leaks nothing but B.
        """
        if slots.ndim != 2:
            raise ParameterError(f"encrypt_many takes slots of shape (B, N), not {slots.shape}")
        seed = sampling.fresh_seed()
        _, b = self._symmetric(self.encoder.encode(slots).coefficients, seed)
        return seed + pack_residues(b, self.parameters.primes)

    def _symmetric(self, coefficients: Words, seed: bytes) -> tuple[Words, Words]:
        """(B, N) modulo p -> a = expansion of seed and b = −a·s + p·e + m, (B, L, N) each."""
        if not isinstance(self.key, SecretKey):
            raise ParameterError("symmetric encryption needs the SecretKey")
        parameters, ring = self.parameters, self.parameters.ring()
        a = np.empty((len(coefficients), ring.limbs, ring.n), np.uint64)
        for i, half in enumerate(a):
            expand_into(seed, _PURPOSE, parameters.primes, half, i)
        error = errors(sampling.Stream(), parameters.primes, ring.n, len(a))
        b = np.empty_like(a)
        _native.bgv_lift(
            np.ascontiguousarray(coefficients), parameters.plaintext, 1, list(parameters.primes), b, threads()
        )
        ring.add(b, ring.mul_scalar(error, parameters.plaintext, error), b)
        ring.ntt(b)
        return a, ring.sub(b, ring.mul(a, self.key.limbs(ring.limbs)), b)


def encrypt_zero(key: PublicKey, count: int) -> Words:
    """(count, 2, L, N) NTT form: (u·b + e0, u·a + e1); unit errors, to be multiplied by p for BGV."""
    parameters = key.parameters
    ring, n, stream = parameters.ring(), parameters.degree, sampling.Stream()
    u = ring.ntt(ternary(stream, parameters.primes, n, count))
    halves = [
        ring.mul_add(ring.ntt(errors(stream, parameters.primes, n, count)), u, key.data[part])
        for part in range(2)
    ]
    return np.stack(halves, axis=1)


def fresh_bytes(parameters: Parameters, count: int) -> int:
    """The size of `encrypt_many` for `count` ciphertexts."""
    return sampling.SEED_BYTES + count * residue_bytes(parameters.primes, parameters.degree)


def load_many(parameters: Parameters, data: Buffer, count: int) -> Ciphertext:
    """The ciphertexts of `encrypt_many`, a batch of `count`.

    FrameError on a wrong size, IntegrityError on a residue that is not reduced.
    """
    view = as_bytes(data)
    expected = fresh_bytes(parameters, count)
    if view.nbytes != expected:
        raise FrameError(f"{count} fresh ciphertexts take {expected} bytes, got {view.nbytes}")
    seed = bytes(view[: sampling.SEED_BYTES])
    pairs = np.empty((count, 2, parameters.limbs, parameters.degree), np.uint64)
    unpack_residues_into(view[sampling.SEED_BYTES :], parameters.primes, pairs)
    for i, ciphertext in enumerate(pairs):
        expand_into(seed, _PURPOSE, parameters.primes, ciphertext[1], i)
    return Ciphertext(parameters, pairs, noise.FRESH)
