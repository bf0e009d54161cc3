"""Plaintexts and ciphertexts: arrays, and the little that must be known about them."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from sottovoce.errors import FrameError, IntegrityError, ParameterError
from sottovoce.rlwe import Parameters
from sottovoce.rlwe.wire import Buffer, frame, pack_residues, residue_bytes, unframe, unpack_residues

Words = npt.NDArray[np.uint64]

# Size, level, reserved, count, plaintext factor, noise of a stored batch.
_META = struct.Struct("<BBHIQd")


@dataclass(frozen=True, eq=False)
class Plaintext:
    """Polynomials modulo p in X^r: coefficients (..., M) of Y = X^r, M = N/r; r = 1 unless periodic."""

    parameters: Parameters
    coefficients: Words = field(repr=False)

    @property
    def batch(self) -> tuple[int, ...]:
        return self.coefficients.shape[:-1]


@dataclass(frozen=True, eq=False)
class Ciphertext:
    """A batch of BGV ciphertexts in NTT form whose phase Σ_i c_i·s^i is factor·m + p·e modulo Q.

    data: (*batch, S, L, N), S = 2, or 3 after a product of ciphertexts. factor: the plaintext factor that
    modulus switching leaves, modulo p. noise: lg of the standard deviation of e, estimated from public bounds
    only.
    """

    parameters: Parameters
    data: Words = field(repr=False)
    noise: float
    factor: int = 1

    @property
    def batch(self) -> tuple[int, ...]:
        """The leading axes."""
        return self.data.shape[:-3]

    @property
    def size(self) -> int:
        """The number of components, 2 or 3."""
        return int(self.data.shape[-3])

    @property
    def limbs(self) -> int:
        """L: how many primes are left."""
        return int(self.data.shape[-2])

    def __len__(self) -> int:
        if not self.batch:
            raise ParameterError("a single ciphertext has no length")
        return int(self.data.shape[0])

    def __getitem__(self, index: int | slice) -> Ciphertext:
        """A view of part of the batch."""
        if not self.batch:
            raise ParameterError("a single ciphertext cannot be indexed")
        return replace(self, data=self.data[index])

    def copy(self) -> Ciphertext:
        """With its own memory."""
        return replace(self, data=self.data.copy())

    def to_bytes(self) -> bytes:
        """For storage: header, size, level, count, factor, noise, residues; the batch becomes one axis.

        307 KB per ciphertext of two components at the top level of the SIMD set.
        """
        rows = self.flat()
        primes = self.parameters.primes[: self.limbs]
        meta = _META.pack(self.size, self.limbs, 0, len(rows), self.factor, self.noise)
        return frame("ciphertext", self.parameters, meta + pack_residues(rows, primes))

    @classmethod
    def from_bytes(cls, parameters: Parameters, data: Buffer) -> Ciphertext:
        """A batch (B, S, L, N). FrameError, IntegrityError or a mismatch error for anything else.

        The noise is what the writer estimated: take such bytes from one's own storage, not from the peer.
        """
        payload = unframe("ciphertext", parameters, data)
        if payload.nbytes < _META.size:
            raise FrameError("a stored ciphertext is truncated")
        size, limbs, reserved, count, factor, bits = _META.unpack(payload[: _META.size])
        if size not in (2, 3) or not 1 <= limbs <= parameters.limbs or reserved:
            raise IntegrityError("a stored ciphertext has an impossible size or level")
        if not 1 <= factor < parameters.plaintext or not -64 <= bits <= 1024:
            raise IntegrityError("a stored ciphertext has an impossible plaintext factor or noise")
        primes, body = parameters.primes[:limbs], payload[_META.size :]
        if body.nbytes != count * size * residue_bytes(primes, parameters.degree):
            raise FrameError("the size of a stored ciphertext does not match the number it announces")
        rows = unpack_residues(body, primes, (count, size, limbs, parameters.degree))
        return cls(parameters, rows, bits, factor)

    def flat(self) -> Words:
        """(B, S, L, N), B = 1 for a single ciphertext: a batch as kernels read it. Shares memory."""
        return np.ascontiguousarray(self.data).reshape(-1, *self.data.shape[-3:])


def stack(ciphertexts: list[Ciphertext]) -> Ciphertext:
    """One batch of single ciphertexts of equal size, level and factor; the noise is the largest."""
    first = ciphertexts[0]
    if any(c.data.shape != first.data.shape or c.factor != first.factor for c in ciphertexts):
        raise ParameterError("only ciphertexts of one size, level and plaintext factor form a batch")
    return replace(
        first, data=np.stack([c.data for c in ciphertexts]), noise=max(c.noise for c in ciphertexts)
    )
