"""Noise estimates: lg of the standard deviation of e in a phase m + p·e, from public bounds, never from
secret values.

Coefficients of messages, masks and encoded plaintexts are taken as uniform modulo p, their worst case; see
docs/design/parameters.md for the table and the measurements that these formulas meet.
"""

from __future__ import annotations

import math

from sottovoce.ring.sampling import ERROR_SIGMA
from sottovoce.rlwe import Parameters

# Variance of a uniform value in [-1/2, 1/2): a message divided by p, and every rounding.
_UNIT = 1 / 12
# Mean square of a uniform ternary coefficient.
_TERNARY = 2 / 3

FRESH = math.log2(ERROR_SIGMA)


def fresh_public(parameters: Parameters) -> float:
    """Public-key encryption: u·e + e1·s + e0."""
    return math.log2(ERROR_SIGMA) + 0.5 * math.log2(2 * _TERNARY * parameters.degree + 1)


def add(*bits: float) -> float:
    """Sum of independent errors."""
    top = max(bits)
    return top + 0.5 * math.log2(sum(4.0 ** (b - top) for b in bits))


def add_plain(bits: float) -> float:
    """A plaintext wraps around p: at most one unit."""
    return 0.5 * math.log2(4.0**bits + 1)


def mul_plain(parameters: Parameters, bits: float, degree: int | None = None) -> float:
    """Product with a plaintext of `degree` = N/r coefficients, uniform modulo p."""
    plain = math.log2(parameters.plaintext) + 0.5 * math.log2(_UNIT * (degree or parameters.degree))
    return plain + 0.5 * math.log2(4.0**bits + _UNIT)


def tensor(parameters: Parameters, left: float, right: float) -> float:
    """Product of two ciphertexts."""
    both = 0.5 * math.log2(4.0**left + _UNIT) + 0.5 * math.log2(4.0**right + _UNIT)
    return both + math.log2(parameters.plaintext) + 0.5 * math.log2(parameters.degree)


def key_switch(parameters: Parameters, limbs: int) -> float:
    """What one key switch adds: digits times errors over P, and the rounding of the division."""
    ratio = max(parameters.primes[:limbs]) / parameters.special
    digits = limbs * parameters.degree * _UNIT * (ratio * ERROR_SIGMA) ** 2
    rounding = _UNIT * (1 + _TERNARY * parameters.degree)
    return 0.5 * math.log2(digits + rounding)


def mod_switch(parameters: Parameters, bits: float, dropped: int) -> float:
    """Division by a prime."""
    rounding = _UNIT * (1 + _TERNARY * parameters.degree)
    return 0.5 * math.log2(4.0 ** (bits - math.log2(dropped)) + rounding)
