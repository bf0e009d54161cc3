"""Secret keys of CKKS: uniform ternary, sparse, and the ephemeral one inside a bootstrap."""

from __future__ import annotations

import hmac
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sottovoce.ckks.parameters import SPARSE_WEIGHTS, Parameters
from sottovoce.errors import FrameError, IntegrityError, ParameterError
from sottovoce.ring import context, sampling
from sottovoce.ring.security import limit
from sottovoce.rlwe.wire import Buffer, frame, unframe

Words = npt.NDArray[np.uint64]

KEY_ID_BYTES = 8
EPHEMERAL = "ephemeral-32"
_WEIGHTS = {**SPARSE_WEIGHTS, EPHEMERAL: 32}
# The largest modulus, in bits, under which the ephemeral secret may encrypt anything.
EPHEMERAL_LIMIT = limit(1 << 16, EPHEMERAL).log_qp


@dataclass(frozen=True, eq=False)
class SecretKey:
    """s. Whoever holds it decrypts everything; it never leaves the data party.

    coefficients: (N,) int8 in {−1, 0, 1}. key_id: random bytes that name the key in keys and ciphertexts, so
    that those of another key are refused instead of decrypting to noise. kind: "ternary", "sparse-192" or
    "ephemeral-32"; NTT forms modulo more than 121 bits are refused for the last.
    """

    parameters: Parameters
    coefficients: npt.NDArray[np.int8] = field(repr=False)
    key_id: bytes
    kind: str = "ternary"

    def __post_init__(self) -> None:
        if self.coefficients.shape != (self.parameters.degree,) or self.coefficients.dtype != np.int8:
            raise ParameterError("a secret key has one int8 per coefficient")
        if len(self.key_id) != KEY_ID_BYTES:
            raise ParameterError(f"a key is named by {KEY_ID_BYTES} bytes")

    @classmethod
    def generate(cls, parameters: Parameters, kind: str | None = None) -> SecretKey:
        """A fresh key of the set's kind (or of `kind`) from the operating system's randomness."""
        kind = kind or parameters.spec.secret
        stream, n = sampling.Stream(), parameters.degree
        if kind == "ternary":
            coefficients = stream.ternary(n).astype(np.int8)
        else:
            coefficients = _sparse(stream, n, _WEIGHTS[kind])
        return cls(parameters, coefficients, os.urandom(KEY_ID_BYTES), kind)

    def ntt(self, primes: Sequence[int]) -> Words:
        """(L, N): the transform modulo these primes."""
        if self.kind == EPHEMERAL and math.log2(math.prod(primes)) > EPHEMERAL_LIMIT:
            raise ParameterError(
                "the ephemeral secret has 32 non-zero coefficients: under a modulus of more than "
                f"{EPHEMERAL_LIMIT} bits it would not be secure"
            )
        ring = context(self.parameters.degree, tuple(primes))
        return ring.ntt(ring.reduce_signed(self.coefficients))

    def to_bytes(self) -> bytes:
        """For the owner's disk (file mode 0600), never for the wire: two bits per coefficient."""
        two_bits = (self.coefficients + 1).astype(np.uint8).reshape(-1, 4)
        packed = (two_bits << np.array([0, 2, 4, 6], np.uint8)).sum(axis=1, dtype=np.uint8)
        return frame("secret key", self.parameters, self.key_id + packed.tobytes())

    @classmethod
    def from_bytes(cls, parameters: Parameters, data: Buffer) -> SecretKey:
        """Raises FrameError, IntegrityError or a mismatch error; see `wire.unframe`."""
        payload, size = unframe("secret key", parameters, data), parameters.degree // 4
        if payload.nbytes != KEY_ID_BYTES + size:
            raise FrameError(f"a secret key has {KEY_ID_BYTES + size} bytes, got {payload.nbytes}")
        packed = np.frombuffer(payload[KEY_ID_BYTES:], np.uint8)
        values = (packed[:, None] >> np.array([0, 2, 4, 6], np.uint8)) & np.uint8(3)
        kind = parameters.spec.secret
        weight = _WEIGHTS.get(kind)
        if (values == 3).any() or (weight is not None and np.count_nonzero(values != 1) != weight):
            raise IntegrityError(f"the coefficients are not those of a {kind} secret key")
        coefficients = values.reshape(-1).astype(np.int8) - np.int8(1)
        return cls(parameters, coefficients, bytes(payload[:KEY_ID_BYTES]), kind)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SecretKey):
            return NotImplemented
        same = hmac.compare_digest(self.coefficients.tobytes(), other.coefficients.tobytes())
        return same and self.key_id == other.key_id and self.parameters == other.parameters

    __hash__ = None  # type: ignore[assignment]


def _sparse(stream: sampling.Stream, n: int, weight: int) -> npt.NDArray[np.int8]:
    """Exactly `weight` coefficients ±1 at uniform positions: those with the smallest of n random words.

    The sorting network of NumPy is not constant time; a secret is made once, on the data party's machine.
    """
    chosen = np.argpartition(stream.words(n), weight)[:weight]
    coefficients = np.zeros(n, np.int8)
    coefficients[chosen] = 1 - 2 * stream.bits(weight).astype(np.int8)
    return coefficients
