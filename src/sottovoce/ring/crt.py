"""Between residues and ordinary numbers: x/q as a rounded fraction, centred integers, wide words.

A wide value is two ``np.uint64`` words in the last axis, low word first: shape (..., N, 2). All functions
take polynomials in coefficient form, (..., L, N), and the ring they belong to; q is the product of its
primes.

The fraction x/q mod 1 is kept to 128 bits (it is at most 2L units of 2^-128 too small), so a rounding to κ
bits is off by one unit with probability about 2^(κ-126) per coefficient, and is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sottovoce import _native
from sottovoce.errors import ParameterError
from sottovoce.ring.context import RingContext, Words, threads


def round_to_bits(ring: RingContext, x: Words, bits: int) -> Words:
    """round(2^bits · x / q) mod 2^bits: (..., L, N) -> (..., N, 2), bits ≤ 120."""
    out = np.empty((*x.shape[:-2], ring.n, 2), np.uint64)
    _checked(_native.crt_round, ring._native, x, bits, out, threads())
    return out


def scale(ring: RingContext, x: Words, modulus: int) -> Words:
    """round(modulus · x / q) mod modulus: (..., L, N) -> (..., N)."""
    out = np.empty((*x.shape[:-2], ring.n), np.uint64)
    _checked(_native.crt_scale, ring._native, x, modulus, out, threads())
    return out


def centred_words(ring: RingContext, x: Words, bits: int = 128) -> Words:
    """The integer v ≡ x mod q with |v| < q/2, modulo 2^bits: (..., L, N) -> (..., N, 2)."""
    out = np.empty((*x.shape[:-2], ring.n, 2), np.uint64)
    _checked(_native.crt_words, ring._native, x, out, threads())
    return mask_words(out, bits)


def centred_mod(ring: RingContext, x: Words, modulus: int) -> Words:
    """The integer v ≡ x mod q with |v| < q/2, modulo `modulus`: (..., L, N) -> (..., N)."""
    out = np.empty((*x.shape[:-2], ring.n), np.uint64)
    _checked(_native.crt_mod, ring._native, x, modulus, out, threads())
    return out


def from_words(ring: RingContext, words: Words) -> Words:
    """Residues of unsigned wide values: (..., N, 2) -> (..., L, N)."""
    out = np.empty((*words.shape[:-2], ring.limbs, ring.n), np.uint64)
    _checked(_native.crt_from_words, ring._native, words, out, threads())
    return out


def scale_words(words: Words, bits: int, modulus: int) -> Words:
    """round(modulus · u / 2^bits) mod modulus of wide values u, taken modulo 2^bits: (..., 2) -> (...)."""
    out = np.empty(words.shape[:-1], np.uint64)
    _checked(_native.scale_words, words, bits, modulus, out)
    return out


def mask_words(words: Words, bits: int) -> Words:
    """Wide values modulo 2^bits, in place."""
    if not 0 < bits <= 128:
        raise ParameterError(f"wide values have 1 to 128 bits, not {bits}")
    if bits < 128:
        words[..., 1] &= np.uint64((1 << max(bits - 64, 0)) - 1)
    if bits < 64:
        words[..., 0] &= np.uint64((1 << bits) - 1)
    return words


def _checked(kernel: Callable[..., None], *arguments: object) -> None:
    try:
        kernel(*arguments)
    except (ValueError, TypeError) as error:
        raise ParameterError(f"{kernel.__name__}: {error}") from error
