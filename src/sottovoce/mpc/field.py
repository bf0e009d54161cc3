"""Arithmetic modulo a public number M on NumPy arrays: the local half of every protocol.

M is a prime below 2^50 (F_p, F_p_s) or a power of two up to 2^63 (Z_2^k). Elements are np.uint64 in [0, M); a
shared bit is np.uint8 0 or 1, its shares joined by XOR. The loops have no branch that depends on a value.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sottovoce import _native
from sottovoce.errors import IntegrityError, RangeError
from sottovoce.ring.primes import P_FIELD, P_SMALL

P = P_FIELD
"""The field of all activations."""

Field = NDArray[np.uint64]
Bits = NDArray[np.uint8]


def is_ring(modulus: int) -> bool:
    """Whether the modulus is a power of two."""
    return modulus & (modulus - 1) == 0


def width(modulus: int) -> int:
    """Bits that hold one element: 43 for p, 28 for p_s, k for 2^k."""
    return (modulus - 1).bit_length()


def add(x: Field, y: Field | np.uint64, modulus: int) -> Field:
    """x + y mod M."""
    total = np.add(x, y)
    if is_ring(modulus):
        return np.bitwise_and(total, np.uint64(modulus - 1))
    # Below M the subtraction wraps to a huge number, so the smaller of the two is the reduced one.
    return np.minimum(total, total - np.uint64(modulus))


def sub(x: Field, y: Field | np.uint64, modulus: int) -> Field:
    """x − y mod M."""
    difference = np.subtract(x, y)
    if is_ring(modulus):
        return np.bitwise_and(difference, np.uint64(modulus - 1))
    return np.minimum(difference, difference + np.uint64(modulus))


def neg(x: Field, modulus: int) -> Field:
    """−x mod M."""
    return sub(np.zeros_like(x), x, modulus)


def negate_where(flip: Bits, x: Field, modulus: int) -> Field:
    """−x mod M where the bit is 1, else x. The result is in [0, M], so that only `add` may follow without
    care.
    """
    sign: Field = np.negative(flip.astype(np.uint64))  # all ones where the bit is 1
    signed: Field = np.add(x ^ sign, sign & np.uint64(modulus + 1))
    return signed


def mul(x: Field, y: Field, modulus: int) -> Field:
    """x·y mod M, with broadcasting."""
    if is_ring(modulus):
        return np.bitwise_and(np.multiply(x, y), np.uint64(modulus - 1))
    if np.shape(x) != np.shape(y):
        x, y = np.broadcast_arrays(x, y)
    x, y = np.asarray(x, order="C"), np.asarray(y, order="C")
    out: Field = np.empty(x.shape, np.uint64)
    _native.field_mul(x, y, modulus, out)
    return out


def mul_reference(x: Field, y: Field, modulus: int) -> Field:
    """`mul` for a prime M < 2^50 in NumPy, through a floating-point quotient.

    The quotient x·y/M is below 2^50, its relative error below 2^-51: its floor is off by at most one, and
    the remainder (computed in wrapping 64-bit words) lies in (−M, 2M).
    """
    quotient = np.multiply(x.astype(np.float64), y.astype(np.float64)) * (1.0 / modulus)
    remainder = np.multiply(x, y) - quotient.astype(np.uint64) * np.uint64(modulus)
    lifted = np.minimum(remainder, remainder + np.uint64(modulus))
    reduced: Field = np.minimum(lifted, lifted - np.uint64(modulus))
    return reduced


def mul_mod(x: Field, y: Field, modulus: int) -> Field:
    """Another name of `mul`, for readers of formulas that also multiply without reduction."""
    return mul(x, y, modulus)


def total(x: Field, axis: int, modulus: int) -> Field:
    """Σ x mod M along one axis, of at most 2^(64 − width) elements for a prime (2^21 for p)."""
    summed = np.sum(x, axis=axis, dtype=np.uint64)
    if is_ring(modulus):
        return np.bitwise_and(summed, np.uint64(modulus - 1))
    return np.asarray(np.mod(summed, np.uint64(modulus)))


def from_signed(x: ArrayLike, modulus: int) -> Field:
    """Integers of either sign (64-bit) to their residues in [0, M)."""
    if is_ring(modulus):
        return np.asarray(x, dtype=np.int64).astype(np.uint64) & np.uint64(modulus - 1)
    return np.mod(np.asarray(x, dtype=np.int64), np.int64(modulus)).astype(np.uint64)


def checked(x: Field, modulus: int) -> Field:
    """x itself. IntegrityError if a value is no residue: the other party then broke the protocol."""
    if x.size and int(x.max()) >= modulus:
        raise IntegrityError(
            f"the other side sent a number that is no residue mod {modulus}; end the session"
        )
    return x


def centred(x: Field, modulus: int) -> NDArray[np.int64]:
    """The representative of x in (−M/2, M/2], as int64."""
    signed = x.astype(np.int64)
    return np.where(signed > modulus // 2, signed - modulus, signed)


def encode(x: ArrayLike, frac_bits: int, modulus: int = P) -> Field:
    """Real numbers to fixed point: round(x·2^frac_bits) mod M.

    Raises:
        RangeError: a value leaves the signed range, abs < M/4, in which protocols are exact.
    """
    scaled = np.rint(np.asarray(x, dtype=np.float64) * 2.0**frac_bits)
    if not np.all(np.abs(scaled) < modulus / 4):  # also false for NaN
        raise RangeError(
            f"encode at 2^-{frac_bits}: a value is outside the signed range of {width(modulus) - 2} bits"
        )
    return from_signed(scaled.astype(np.int64), modulus)


def decode(x: Field, frac_bits: int, modulus: int = P) -> NDArray[np.float64]:
    """Fixed point back to real numbers: centred(x)·2^-frac_bits."""
    return centred(x, modulus).astype(np.float64) * 2.0**-frac_bits


__all__ = [
    "P",
    "P_FIELD",
    "P_SMALL",
    "Bits",
    "Field",
    "add",
    "centred",
    "checked",
    "decode",
    "encode",
    "from_signed",
    "is_ring",
    "mul",
    "mul_mod",
    "mul_reference",
    "neg",
    "negate_where",
    "sub",
    "total",
    "width",
]
