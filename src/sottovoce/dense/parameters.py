"""The parameter set of dense products, and what their noise amounts to."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.errors import ParameterError
from sottovoce.ring import context
from sottovoce.ring.primes import P_FIELD, ntt_primes
from sottovoce.ring.sampling import ERROR_SIGMA
from sottovoce.ring.security import check

Words = npt.NDArray[np.uint64]

LOG_Q = 52  # the word of the integer product instruction
SENT_BITS = 40  # of each coefficient of a returned half
FRESH_BITS = 49  # of each coefficient of a fresh ciphertext
SENT_BYTES = SENT_BITS // 8


@dataclass(frozen=True)
class DenseParameters:
    """RLWE modulo q = 2^52 with a uniform ternary secret; coefficients index tokens.

    degree: N. block: the most tokens of one batch; a fresh ciphertext carries c = N/block input features,
    token t of feature k at X^(t·c + k). Everywhere a polynomial is an array of c components of `block`
    coefficients, that one at k·block + t. plaintext: p, the field of the shares. security: 128, or
    "unchecked" for tests.
    """

    degree: int = 2048
    block: int = 512
    plaintext: int = P_FIELD
    security: int | str = 128

    def __post_init__(self) -> None:
        n = self.degree
        if n < 16 or n & (n - 1) or self.block < 8 or n % self.block:
            raise ParameterError(f"dense products: no blocks of {self.block} in a ring of degree {n}")
        if not 1 << 41 < self.plaintext < 1 << 44:
            raise ParameterError("dense products: the plaintext modulus has 42 to 44 bits")
        check(n, LOG_Q, "ternary", self.security)

    @property
    def features(self) -> int:
        """Input features per fresh ciphertext."""
        return self.degree // self.block

    @functools.cached_property
    def primes(self) -> tuple[int, ...]:
        """Two primes of 50 bits: products of words with small polynomials are exact modulo their product."""
        return ntt_primes(50, 2 * self.degree, 2)

    def whole(self, words: npt.NDArray[Any], limbs: int = 2) -> Words:
        """A factor of products of all N coefficients: components (N,) as words or signed integers ->
        (limbs, N), NTT form modulo the first primes, natural order."""
        natural = np.ascontiguousarray(words.reshape(self.features, self.block).T).reshape(-1)
        return self._transformed(natural, self.degree, limbs)

    def first(self, words: npt.NDArray[Any], limbs: int = 1) -> Words:
        """A factor s of products of which component 0 is wanted: components (N,) -> (limbs, c, block).

        With Y = X^c: Σ_k a_k·s'_k, s'_0 = s_0 and s'_k = Y·s_(c−k).
        """
        s = words.reshape(self.features, self.block)
        turned = np.roll(s[:0:-1], 1, axis=1)
        turned[:, 0] = np.subtract(0, turned[:, 0], dtype=turned.dtype)
        return self._transformed(np.concatenate([s[:1], turned]), self.block, limbs)

    def _transformed(self, integers: npt.NDArray[Any], n: int, limbs: int) -> Words:
        """Integers (…, n) of the size of words, signed if their type is -> (limbs, …, n)."""
        out = np.empty((limbs, *integers.shape), np.uint64)
        for limb, q in enumerate(self.primes[:limbs]):
            residues = np.mod(integers.astype(np.int64), np.int64(q)).astype(np.uint64)
            ring = context(n, (q,))
            out[limb] = ring.ntt(residues.reshape(-1, 1, n)).reshape(integers.shape)
        return out

    def noise(self, row_norm: float) -> float:
        """The standard deviation of y0 + y1 − W·r, in units of the plaintext, for a row of W of this
        Euclidean norm.

        Errors and roundings of the fresh ciphertexts, multiplied by the row; roundings of the hint and of
        the public key, multiplied by a ternary polynomial; encryption of zero; roundings of the answer.
        """
        fresh = row_norm**2 * (ERROR_SIGMA**2 + (4.0 ** (LOG_Q - FRESH_BITS) + 1) / 12)
        ternary = 2 * self.degree / 3
        rounding = 4.0 ** (LOG_Q - SENT_BITS) / 12
        other = ternary * (2 * rounding + 2 * ERROR_SIGMA**2) + rounding
        return math.sqrt((fresh + other) * (self.plaintext / 2.0**LOG_Q) ** 2 + 2 / 12)


DENSE = DenseParameters()
