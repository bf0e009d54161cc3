"""Sums modulo a prime below 2^63 or a power of two up to 2^64, on arrays of uint64 residues."""

import numpy as np
import numpy.typing as npt

from sottovoce import _native
from sottovoce.errors import IntegrityError, ParameterError
from sottovoce.ring.primes import P_FIELD

U64 = npt.NDArray[np.uint64]


def bit_width(modulus: int) -> int:
    """Bits of a residue."""
    return (modulus - 1).bit_length()


def add_mod(a: U64, b: U64, modulus: int) -> U64:
    """a + b mod M."""
    total: U64 = a + b
    if modulus & (modulus - 1) == 0:
        return total & np.uint64(modulus - 1)
    # The smaller of s and s - M in unsigned arithmetic is the reduced one: s - M wraps to a huge number if s
    # < M.
    reduced: U64 = np.minimum(total, total - np.uint64(modulus))
    return reduced


def sub_mod(a: U64, b: U64, modulus: int) -> U64:
    """a − b mod M."""
    difference: U64 = a - b
    if modulus & (modulus - 1) == 0:
        return difference & np.uint64(modulus - 1)
    reduced: U64 = np.minimum(difference, difference + np.uint64(modulus))
    return reduced


def reduce_words(words: U64, column: int, modulus: int) -> U64:
    """Uniform words (n, k), two from `column` on, to residues (n,), uniform up to 2^-64."""
    out = np.empty(len(words), np.uint64)
    _native.scale_to_modulus(words, column, modulus % (1 << 64), out)
    return out


def checked(values: U64, modulus: int) -> U64:
    """`values`, if all are residues; IntegrityError otherwise."""
    if modulus < 1 << 64 and values.size and int(values.max()) >= modulus:
        raise IntegrityError("oblivious transfer: the other party sent a number that is not a residue")
    return values


def sum_mod(x: U64, modulus: int) -> U64:
    """Sums over the last axis mod M < 2^48, up to 2^16 terms (the plain sum then fits a word)."""
    if x.shape[-1] > 1 << 16 or modulus > 1 << 48:
        raise ParameterError("sum_mod adds at most 2^16 residues below 2^48")
    total: U64 = x.sum(axis=-1, dtype=np.uint64) % np.uint64(modulus)
    return total


def mul_field(a: U64, b: U64) -> U64:
    """a·b mod P_FIELD, arrays of one shape."""
    out = np.empty(a.shape, np.uint64)
    left, right = np.ascontiguousarray(a).reshape(-1), np.ascontiguousarray(b).reshape(-1)
    _native.field_mul(left, right, P_FIELD, out.reshape(-1))
    return out
