"""Parameters in two states: a free `ParametersSpec`, and `Parameters`, checked and immutable."""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass

from sottovoce.errors import ParameterError
from sottovoce.ring import RingContext, context
from sottovoce.ring.primes import is_prime
from sottovoce.ring.security import check

# Bound by the header of every serialised object; changes whenever the meaning of a parameter does.
PARAMETERS_VERSION = 1


@dataclass(frozen=True)
class ParametersSpec:
    """What a parameter set should be; nothing is verified yet.

    degree: N, a power of two. primes: the ciphertext primes q_0..q_{L-1}. special: the key-switching prime P,
    or 0 for a set that switches no keys, whose Q then has the whole security limit. plaintext: the modulus p
    of messages, by which errors are multiplied (1 for a scheme without one). security: 128, or "unchecked"
    for tests, which then have no security at all.
    """

    degree: int
    primes: tuple[int, ...]
    special: int
    plaintext: int = 1
    security: int | str = 128

    def checked(self) -> Parameters:
        """The checked set. ParameterError if it is inconsistent or not secure."""
        return Parameters(self)


@dataclass(frozen=True)
class Parameters:
    """A checked parameter set: uniform ternary secrets, centred binomial errors with σ = 3.24.

    Equal specs make equal parameters; `digest` identifies the set in every serialised key and ciphertext.
    Raises ParameterError when built from a spec that is inconsistent or below the 128-bit table.
    """

    spec: ParametersSpec

    def __post_init__(self) -> None:
        _check(self.spec)

    @property
    def degree(self) -> int:
        """N."""
        return self.spec.degree

    @property
    def primes(self) -> tuple[int, ...]:
        """The ciphertext primes."""
        return self.spec.primes

    @property
    def special(self) -> int:
        """The key-switching prime P, or 0."""
        return self.spec.special

    @property
    def plaintext(self) -> int:
        """The plaintext modulus p."""
        return self.spec.plaintext

    @property
    def limbs(self) -> int:
        """L."""
        return len(self.spec.primes)

    @property
    def key_primes(self) -> tuple[int, ...]:
        """The ciphertext primes and the special prime: what switching keys are modulo."""
        return (*self.spec.primes, self.spec.special) if self.spec.special else self.spec.primes

    def ring(self, limbs: int | None = None) -> RingContext:
        """The ciphertext ring, over the first `limbs` primes (default: all)."""
        return context(self.degree, self.primes[:limbs])

    @functools.cached_property
    def key_ring(self) -> RingContext:
        """The ring of switching keys, modulo Q·P."""
        return context(self.degree, self.key_primes)

    @functools.cached_property
    def special_ring(self) -> RingContext:
        """The ring modulo P alone."""
        return context(self.degree, (self.special,))

    def plain_ring(self, degree: int | None = None) -> RingContext:
        """Z_p[X]/(X^M + 1), M = N unless given: where slots are transforms of coefficients."""
        return context(degree or self.degree, (self.plaintext,))

    def modulus(self, limbs: int | None = None) -> int:
        """Q, or the product of the first `limbs` primes."""
        return math.prod(self.primes[:limbs])

    @functools.cached_property
    def digest(self) -> bytes:
        """Eight bytes that identify the set."""
        words = (PARAMETERS_VERSION, self.degree, *self.key_primes, self.plaintext)
        return hashlib.blake2b(",".join(map(str, words)).encode(), digest_size=8).digest()


def _check(spec: ParametersSpec) -> None:
    n = spec.degree
    if n < 8 or n & (n - 1):
        raise ParameterError(f"the degree must be a power of two of at least 8, not {n}")
    if not spec.primes:
        raise ParameterError("at least one ciphertext prime is needed")
    moduli = (*spec.primes, spec.special) if spec.special else spec.primes
    if len({*moduli, spec.plaintext}) != len(moduli) + 1:
        raise ParameterError("the primes of a parameter set must be distinct, the plaintext modulus included")
    for q in moduli:
        if q % (2 * n) != 1 or not is_prime(q) or q >= 1 << 60:
            raise ParameterError(f"{q} is not a prime below 2^60 that is 1 modulo {2 * n}")
    p = spec.plaintext
    if p != 1 and (p % (2 * n) != 1 or not is_prime(p) or p >= min(moduli)):
        raise ParameterError(
            f"the plaintext modulus {p} must be a prime, 1 modulo {2 * n}, below every other prime"
        )
    # A digit is as large as the largest ciphertext prime; a smaller special prime would not absorb its noise.
    if 0 < spec.special.bit_length() < max(spec.primes).bit_length():
        raise ParameterError(
            "the special prime must have at least as many bits as the largest ciphertext prime"
        )
    check(n, math.log2(math.prod(moduli)), "ternary", spec.security)
