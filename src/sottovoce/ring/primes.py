"""The primes that everything above agrees on, and how to find others.

P_FIELD is the field of the secret shares and the plaintext modulus of the SIMD parameter set: 43 bits, ≡ 1
mod 2^15 (so that it has slots up to N = 16384, and so that p mod 2^f = 1 for f ≤ 15, which makes rescaling
unbiased). P_SMALL is the field of small table look-ups.
"""

from __future__ import annotations

from sottovoce.errors import ParameterError

P_FIELD = 8796092858369  # 2^43 - 163839
P_SMALL = 268369921  # 2^28 - 65535

# Ciphertext primes of the SIMD set, 50 bits each and ≡ 1 mod 2^15: below 2^50, so that lazy butterflies fit
# 52-bit words.
SIMD_PRIMES = (1125899904679937, 1125899903991809, 1125899903827969)

# The extra prime of key switching in the SIMD set: the largest below 2^50 that is ≡ 1 mod 2^15 and not one
# of the above (a test recomputes it).
SPECIAL_PRIME = 1125899903795201

# Deterministic witnesses for Miller-Rabin below 3.3·10^24 (Sorenson and Webster, "Strong pseudoprimes to
# twelve prime bases", 2015).
_WITNESSES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41)


def is_prime(n: int) -> bool:
    """Whether n is prime; exact for n < 3.3·10^24. Not constant time: for public moduli only."""
    if n >= 3317044064679887385961981:
        raise ParameterError(f"is_prime is exact below 3.3e24 only, not for {n}")
    if n < 2:
        return False
    for small in _WITNESSES:
        if n % small == 0:
            return n == small
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    return all(_passes(n, witness, odd, twos) for witness in _WITNESSES)


def _passes(n: int, witness: int, odd: int, twos: int) -> bool:
    x = pow(witness, odd, n)
    if x in (1, n - 1):
        return True
    for _ in range(twos - 1):
        x = x * x % n
        if x == n - 1:
            return True
    return False


def ntt_primes(bits: int, step: int, count: int, exclude: tuple[int, ...] = ()) -> tuple[int, ...]:
    """The `count` largest primes below 2^bits that are ≡ 1 mod `step` (2N for a ring of degree N),
    descending.

    exclude: primes already in use. Raises ParameterError when fewer exist above 2^(bits-1).
    """
    if step < 2 or step & (step - 1):
        raise ParameterError(f"the step must be a power of two, twice the ring degree, not {step}")
    found: list[int] = []
    candidate = (1 << bits) - step + 1
    while len(found) < count:
        if candidate <= 1 << (bits - 1):
            raise ParameterError(f"fewer than {count} primes of {bits} bits are 1 modulo {step}")
        if candidate not in exclude and is_prime(candidate):
            found.append(candidate)
        candidate -= step
    return tuple(found)
