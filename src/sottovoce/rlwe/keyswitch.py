"""Key switching: a digit per prime, products accumulated modulo Q·P, one division by P at the end.

A polynomial c modulo Q is split into its residues c mod q_d, each lifted to a small integer polynomial
(centred, which halves its size) modulo every prime of Q·P. The sum of digit d times key d has phase
p^-1·P·c·s' + Σ digit·e; subtracting its centred residue modulo P and dividing by P leaves p^-1·c·s' plus a
rounding error, and the factor p makes it a BGV ciphertext whose error is a multiple of p. The factor p^-1
that this needs is built into the keys.

Noise added (standard deviation of e in m + p·e): √(D·N/12)·σ·q/P from the digits, √(N/18) from the rounding;
7.2 bits with a 50-bit P.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sottovoce import _native
from sottovoce.errors import ParameterError
from sottovoce.ring import context, threads
from sottovoce.rlwe.parameters import Parameters

Words = npt.NDArray[np.uint64]

_NOTHING: Words = np.zeros((0, 0, 0, 0), np.uint64)


class KeySwitcher:
    """The three steps of key switching at one level, the first `limbs` primes; for every key of a set."""

    def __init__(self, parameters: Parameters, limbs: int) -> None:
        if not 1 <= limbs <= parameters.limbs:
            raise ParameterError(f"a level has 1 to {parameters.limbs} primes, not {limbs}")
        self.parameters, self.limbs = parameters, limbs
        self.ring = parameters.ring(limbs)
        self.primes = list(parameters.primes[:limbs])
        self.key_primes = [*self.primes, parameters.special]
        self.key_ring = context(parameters.degree, tuple(self.key_primes))
        p = parameters.plaintext
        self._scales = [p * pow(parameters.special, -1, q) % q for q in self.primes]

    def decompose(self, data: Words, part: int) -> Words:
        """Component `part` of (R, S, L, N) -> digits (R, L, L+1, N), NTT form. L inverse, L² forward NTTs."""
        rows, _, limbs, n = data.shape
        out = np.empty((rows, limbs, limbs + 1, n), np.uint64)
        _native.bgv_decompose(self.key_ring._native, data, part, out, threads())
        return out

    def product(self, digits: Words, key: Words, out: Words | None = None) -> Words:
        """Σ_d digits[:, d]·key[d]: (R, 2, L+1, N) modulo Q·P, added to `out` if that is given."""
        accumulate = out is not None
        if out is None:
            out = np.empty((len(digits), 2, *digits.shape[2:]), np.uint64)
        _native.bgv_key_product(digits, self._at_level(key), self.key_primes, out, accumulate, threads())
        return out

    def mod_down(self, x: Words, more: Words = _NOTHING) -> Words:
        """(R, C, L+1, N) modulo Q·P -> (R, C, L, N): divided by P, multiplied by p; in NTT form.

        more: (R, C', L, N), added to the first C' components.
        """
        rows, parts, limbs, n = x.shape
        out = np.empty((rows, parts, limbs - 1, n), np.uint64)
        _native.bgv_mod_down(self.key_ring._native, x, self._scales, more, out, threads())
        return out

    def switch(
        self, digits: Words, keys: Sequence[Words], elements: Sequence[int], more: Words, parts: int
    ) -> Words:
        """Product, division and automorphism in one pass for every key: (S, R, 2, L, N).

        keys: S aligned keys; elements: the exponents k of their automorphisms X → X^k, 1 for none. more:
        (R, S, L, N), of which `parts` components are added before the automorphism.
        """
        out = np.empty((len(keys), len(digits), 2, self.limbs, self.ring.n), np.uint64)
        levelled = [self._at_level(key) for key in keys]
        _native.bgv_switch(
            self.key_ring._native, digits, levelled, list(elements), self._scales, more, parts, out, threads()
        )
        return out

    def _at_level(self, key: Words) -> Words:
        if self.limbs == self.parameters.limbs:
            return key
        limbs = [*range(self.limbs), self.parameters.limbs]
        return np.ascontiguousarray(key[: self.limbs][:, :, limbs])


@functools.lru_cache(maxsize=16)
def key_switcher(parameters: Parameters, limbs: int) -> KeySwitcher:
    """The shared switcher of a parameter set and level."""
    return KeySwitcher(parameters, limbs)
