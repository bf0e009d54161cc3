"""CKKS parameters: a free `ParametersSpec`, a checked `Parameters`, and the sets that are shipped.

The modulus budget of every shipped set is in its comment: lg(Q·P) against the limit of `ring.security`.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from sottovoce.errors import ParameterError
from sottovoce.ring import RingContext, context
from sottovoce.ring.primes import is_prime
from sottovoce.ring.security import UNCHECKED, check

# Part of the digest in the header of every serialised object; changes when the meaning of a parameter does.
PARAMETERS_VERSION = 1

# Non-zero coefficients of a sparse secret, by kind; a "ternary" secret is uniform in {−1, 0, 1}^N.
SPARSE_WEIGHTS = {"sparse-192": 192}


@dataclass(frozen=True)
class ParametersSpec:
    """What a parameter set should be; nothing is verified yet.

    degree: N, a power of two. primes: the chain q_0, q_1, …, lowest level first. special: the key-switching
    primes; a digit takes as many chain primes as there are special ones. scale: the scale of fresh
    plaintexts. secret: "ternary" or "sparse-192". refresh: how many primes at the top of the chain a
    bootstrap uses for slots-to-coefficients, the sine and coefficients-to-slots, in this order, lowest
    first. security: 128, or "unchecked" for tests, which then have no security at all.
    """

    degree: int
    primes: tuple[int, ...]
    special: tuple[int, ...]
    scale: float = 2.0**41
    secret: str = "ternary"
    refresh: tuple[int, int, int] = (0, 0, 0)
    security: int | str = 128

    def checked(self) -> Parameters:
        """The checked set. ParameterError if it is inconsistent or not secure."""
        return Parameters(self)


@dataclass(frozen=True)
class Parameters:
    """A checked parameter set; equal specs make equal parameters. Errors are centred binomial, σ = 3.24.

    Raises ParameterError when built from a spec that is inconsistent or below the 128-bit table.
    """

    spec: ParametersSpec

    def __post_init__(self) -> None:
        _check(self.spec)

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def degree(self) -> int:
        """N."""
        return self.spec.degree

    @property
    def slots(self) -> int:
        """N/2, the most slots a ciphertext has."""
        return self.spec.degree // 2

    @property
    def primes(self) -> tuple[int, ...]:
        """The chain q_0, …, q_top."""
        return self.spec.primes

    @property
    def special(self) -> tuple[int, ...]:
        """The special primes; their product is P."""
        return self.spec.special

    @property
    def scale(self) -> float:
        """The default scale Δ."""
        return self.spec.scale

    @property
    def top(self) -> int:
        """The highest level: one less than the number of primes."""
        return len(self.spec.primes) - 1

    @property
    def working_top(self) -> int:
        """The highest level that bootstrapping leaves for use."""
        return self.top - sum(self.spec.refresh)

    @property
    def alpha(self) -> int:
        """Chain primes per digit: the number of special primes."""
        return len(self.spec.special)

    def digits(self, level: int) -> int:
        """⌈(level + 1)/α⌉: the digits of key switching at a level."""
        return -(-(self.check_level(level) + 1) // self.alpha)

    def ring(self, level: int | None = None) -> RingContext:
        """The ring modulo Q_level = q_0⋯q_level."""
        level = self.top if level is None else self.check_level(level)
        return context(self.degree, self.primes[: level + 1])

    def wide_ring(self, level: int | None = None) -> RingContext:
        """The ring modulo Q_level·P: chain primes, then special primes."""
        level = self.top if level is None else self.check_level(level)
        return context(self.degree, (*self.primes[: level + 1], *self.special))

    def modulus(self, level: int | None = None) -> int:
        """Q_level."""
        level = self.top if level is None else self.check_level(level)
        return math.prod(self.primes[: level + 1])

    @functools.cached_property
    def special_modulus(self) -> int:
        """P."""
        return math.prod(self.special)

    @functools.cached_property
    def log_qp(self) -> float:
        """lg(Q·P) of the whole chain: what the security table limits."""
        return math.log2(math.prod(self.primes) * self.special_modulus)

    def check_level(self, level: int) -> int:
        """The level itself. ParameterError unless it is in [0, top]."""
        if not 0 <= level <= self.top:
            raise ParameterError(f"a level of this parameter set is in [0, {self.top}], not {level}")
        return level

    @functools.cached_property
    def digest(self) -> bytes:
        """Eight bytes that identify the set."""
        spec = self.spec
        words = (PARAMETERS_VERSION, spec.degree, *spec.primes, 0, *spec.special, spec.secret, spec.refresh)
        text = "ckks," + ",".join(map(str, words)) + "," + spec.scale.hex()
        return hashlib.blake2b(text.encode(), digest_size=8).digest()


def chain(degree: int, bits: Sequence[int]) -> tuple[int, ...]:
    """Distinct primes ≡ 1 mod 2N, one for each entry of `bits`, in its order.

    Those of up to 48 bits lie alternately just above and just below 2^bits, so that scales stay near it;
    those of 49 and 50 bits lie below. Every prime is below 2^50, which lazy 52-bit butterflies need.
    """
    taken: dict[int, list[int]] = {}
    for size in set(bits):
        taken[size] = _around(degree, size, sum(b == size for b in bits))
    return tuple(taken[size].pop(0) for size in bits)


def _around(degree: int, bits: int, count: int) -> list[int]:
    if not 20 <= bits <= 50:
        raise ParameterError(f"a prime of the chain has 20 to 50 bits, not {bits}")
    step, centre = 2 * degree, 1 << bits
    below = (q for q in range(centre - step + 1, centre // 2, -step) if is_prime(q))
    above = (q for q in range(centre + 1, 2 * centre, step) if is_prime(q))
    both = bits <= 48
    found = [next(above if both and i % 2 == 0 else below, 0) for i in range(count)]
    if 0 in found:
        raise ParameterError(f"fewer than {count} primes of {bits} bits are 1 modulo {step}")
    return found


def _check(spec: ParametersSpec) -> None:
    n, moduli = spec.degree, (*spec.primes, *spec.special)
    if n < 16 or n & (n - 1) or n > 1 << 16:
        raise ParameterError(f"the degree must be a power of two from 16 to 65536, not {n}")
    if not spec.primes or not spec.special:
        raise ParameterError("at least one chain prime and one special prime are needed")
    if len(set(moduli)) != len(moduli):
        raise ParameterError("the primes of a parameter set must be distinct")
    for q in moduli:
        if q % (2 * n) != 1 or q >= 1 << 50 or not is_prime(q):
            raise ParameterError(f"{q} is not a prime below 2^50 that is 1 modulo {2 * n}")
    alpha, special = len(spec.special), math.prod(spec.special)
    for first in range(0, len(spec.primes), alpha):
        if math.prod(spec.primes[first : first + alpha]) > special:
            raise ParameterError("the product of the special primes is smaller than that of a digit")
    if not 1 <= math.log2(spec.scale) <= 60:
        raise ParameterError(f"a scale is between 2 and 2^60, not {spec.scale}")
    if spec.secret != "ternary" and spec.secret not in SPARSE_WEIGHTS:
        raise ParameterError(f"a secret is 'ternary' or 'sparse-192', not {spec.secret!r}")
    if spec.secret in SPARSE_WEIGHTS and SPARSE_WEIGHTS[spec.secret] > n // 2:
        raise ParameterError(f"a {spec.secret} secret needs a larger degree than {n}")
    if len(spec.refresh) != 3 or min(spec.refresh) < 0 or sum(spec.refresh) >= len(spec.primes):
        raise ParameterError("a bootstrap cannot use more levels than the chain has above level 0")
    check(n, math.log2(math.prod(moduli)), spec.secret, spec.security)


def _named(
    degree: int,
    bits: Sequence[int],
    special: int,
    secret: str = "ternary",
    refresh: tuple[int, int, int] = (0, 0, 0),
    scale: float = 2.0**41,
    security: int | str = 128,
) -> Parameters:
    primes = chain(degree, [*bits, *[50] * special])
    spec = ParametersSpec(degree, primes[: len(bits)], primes[len(bits) :], scale, secret, refresh, security)
    return spec.checked()


def refreshing(
    degree: int,
    work: int,
    refresh: tuple[int, int, int],
    special: int,
    secret: str,
    security: int | str = 128,
) -> Parameters:
    """A set for bootstrapping: q_0 of 49 bits, 41-bit primes for work and slots-to-coefficients, then 49-bit
    ones."""
    bits = [49, *[41] * (work + refresh[0]), *[49] * (refresh[1] + refresh[2])]
    return _named(degree, bits, special, secret, refresh, security=security)


# 1,527 of 1,546 bits, h = 192: 9 working levels at full slots; for comparison with other libraries.
BOOT16 = refreshing(1 << 16, 9, (3, 10, 4), 6, "sparse-192")
# 1,724 of 1,747 bits: 16 working levels for up to 4,096 slots.
ENGINE16 = refreshing(1 << 16, 16, (2, 10, 3), 6, "ternary")
# 1,732 of 1,747 bits: 14 working levels at full slots.
FULL16 = refreshing(1 << 16, 14, (3, 10, 4), 6, "ternary")

# 181 of 214 bits, 2 levels.
LEVELED13 = _named(1 << 13, [49, 41, 41], 1)
# 404 of 430 bits, 5 levels.
LEVELED14 = _named(1 << 14, [49, *[41] * 5], 3)
# 841 of 868 bits, 12 levels.
LEVELED15 = _named(1 << 15, [49, *[41] * 12], 6)
# Tests only: no security at all. 9 levels in three digits.
SMALL = _named(1 << 10, [49, *[41] * 9], 4, security=UNCHECKED)

__all__ = [
    "BOOT16",
    "ENGINE16",
    "FULL16",
    "LEVELED13",
    "LEVELED14",
    "LEVELED15",
    "Parameters",
    "ParametersSpec",
    "SMALL",
    "chain",
    "refreshing",
]
