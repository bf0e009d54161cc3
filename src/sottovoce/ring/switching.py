"""The two halves of key switching, as in "A full RNS variant of approximate homomorphic encryption" (Cheon
et al., SAC 2018): digits of a polynomial over all primes, and exact division by the last prime."""

from __future__ import annotations

import numpy as np

from sottovoce import _native
from sottovoce.errors import ParameterError
from sottovoce.ring.context import RingContext, Words, threads


def decompose(ring: RingContext, x: Words, out: Words | None = None) -> Words:
    """The residue digits of x, each over every prime of `ring`, in NTT form.

    x: (..., L, N) in NTT form over all primes of `ring` but the last. Result: (..., L, L + 1, N); digit i
    is the centred x mod q_i, so that Σ digit_i · g_i = x mod q for the gadget g_i ≡ 1 mod q_i, ≡ 0 mod the
    others. Digits of x(X^k) are the digits permuted: several rotations may share one call.
    """
    if x.shape[-2:] != (ring.limbs - 1, ring.n):
        raise ParameterError(f"decompose: expected (..., {ring.limbs - 1}, {ring.n}), not {x.shape}")
    if out is None:
        out = np.empty((*x.shape[:-2], ring.limbs - 1, ring.limbs, ring.n), np.uint64)
    try:
        _native.ring_decompose(ring._native, x, out, threads())
    except (ValueError, TypeError) as error:
        raise ParameterError(f"decompose: {error}") from error
    return out


def mod_down(ring: RingContext, x: Words, plain_modulus: int = 1, out: Words | None = None) -> Words:
    """x divided by the last prime P of `ring`, rounded to a multiple that keeps x modulo the plaintext
    modulus t.

    x: (..., L, N) in NTT form. Result: (..., L-1, N) in NTT form, (x − t·d)/P with d the centred x·t^-1 mod
    P: the error is at most t/2 per coefficient, and the result is ≡ x·P^-1 mod t. t = 1 rounds to the
    nearest integer.
    """
    if x.shape[-2:] != (ring.limbs, ring.n):
        raise ParameterError(f"mod_down: expected (..., {ring.limbs}, {ring.n}), not {x.shape}")
    if out is None:
        out = np.empty((*x.shape[:-2], ring.limbs - 1, ring.n), np.uint64)
    try:
        _native.ring_mod_down(ring._native, x, plain_modulus, out, threads())
    except (ValueError, TypeError) as error:
        raise ParameterError(f"mod_down: {error}") from error
    return out
