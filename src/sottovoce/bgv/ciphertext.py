"""Plaintexts and ciphertexts: arrays, and the little that must be known about them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from sottovoce.errors import ParameterError
from sottovoce.rlwe import Parameters

Words = npt.NDArray[np.uint64]


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
