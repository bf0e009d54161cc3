"""Random polynomials in residue form, drawn from `ring.sampling` streams in one native pass each.

The values are those of the reference samplers there (a test compares them). What is saved, for every fresh
ciphertext and every masked result, is the detour over signed integers and temporaries.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sottovoce import _native
from sottovoce.ring.sampling import Stream

Words = npt.NDArray[np.uint64]


def ternary(stream: Stream, primes: Sequence[int], n: int, count: int) -> Words:
    """(count, L, N): coefficients uniform in {−1, 0, 1}, as `Stream.ternary`."""
    out = np.empty((count, len(primes), n), np.uint64)
    words = stream.bytes(4 * count * n).view(np.uint32).reshape(count, n)
    _native.bgv_ternary(words, list(primes), out)
    return out


def errors(stream: Stream, primes: Sequence[int], n: int, count: int) -> Words:
    """(count, L, N): coefficients of the error distribution, as `Stream.error`."""
    out = np.empty((count, len(primes), n), np.uint64)
    _native.bgv_error(stream.words(count, n), list(primes), out)
    return out


def uniform_rns(stream: Stream, primes: Sequence[int], n: int, count: int) -> Words:
    """(count, L, N): uniform modulo the product of the primes; for masks."""
    out = np.empty((count, len(primes), n), np.uint64)
    for polynomial in out:
        for limb, prime in zip(polynomial, primes, strict=True):
            uniform_into(stream, prime, limb)
    return out


def expand_into(seed: bytes, purpose: bytes, primes: Sequence[int], out: Words, index: int = 0) -> None:
    """`ring.sampling.expand` into out (L, N): the public uniform half of a ciphertext or key."""
    for limb, prime in enumerate(primes):
        uniform_into(Stream(seed, purpose, index * len(primes) + limb), prime, out[limb])


def uniform_into(stream: Stream, modulus: int, out: Words) -> None:
    """Fill out (N,) with uniform residues below modulus < 2^63: the values of `Stream.uniform`."""
    filled, bits = 0, (modulus - 1).bit_length()
    while filled < len(out):
        draw = stream.words(int((len(out) - filled) * ((1 << bits) / modulus) * 1.01) + 16)
        filled += _native.bgv_reject(draw, modulus, out[filled:])
