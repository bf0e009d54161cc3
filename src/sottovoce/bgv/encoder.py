"""Slots to polynomials modulo p and back."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sottovoce import _native
from sottovoce.bgv.ciphertext import Plaintext
from sottovoce.errors import ParameterError, RangeError
from sottovoce.ring import context, threads
from sottovoce.rlwe import Parameters, position_slots, slot_positions

Words = npt.NDArray[np.uint64]


class Encoder:
    """Slots: two rows of N/2; slot (row r, column c) has index r·N/2 + c. Values are residues modulo p."""

    def __init__(self, parameters: Parameters) -> None:
        if parameters.plaintext == 1:
            raise ParameterError("these parameters have no plaintext modulus, hence no slots")
        self.parameters = parameters

    def encode(self, slots: Words) -> Plaintext:
        """(..., N) uint64 below p -> plaintexts. RangeError if a value is not reduced. One transform each."""
        return self.encode_periodic(self._sized(slots, self.parameters.degree))

    def encode_periodic(self, slots: Words) -> Plaintext:
        """(..., M) -> plaintexts whose rows repeat: slot (r, c) = slots[r·M/2 + c mod M/2].

        Such a plaintext is a polynomial in X^(N/M): it is stored, encoded and transformed at length M, and in
        NTT form each of its M values stands for a run of N/M equal ones. Only *periodic* slots have this: a
        value that is constant on runs of neighbouring slots is not a sparse polynomial.
        """
        degree = slots.shape[-1]
        if degree < 4 or degree & (degree - 1) or degree > self.parameters.degree:
            raise ParameterError(f"slots repeat with a power of two of at least 4 values, not {degree}")
        if slots.dtype != np.uint64:
            raise ParameterError(f"slots are uint64 residues modulo p, not {slots.dtype}")
        if slots.size and int(slots.max()) >= self.parameters.plaintext:
            raise RangeError("a slot value is not reduced modulo p")
        values = np.take(slots, position_slots(degree), axis=-1)
        self.parameters.plain_ring(degree).intt(values.reshape(-1, 1, degree))
        return Plaintext(self.parameters, values)

    def encode_runs(self, slots: Words) -> Plaintext:
        """(..., M) uint64 below p -> plaintexts of N slots, in which every value fills N/M neighbours of a
        row: slot (r, c) = slots[r·M/2 + c // (N/M)]. One transform each; RangeError as for `encode`."""
        degree, size = self.parameters.degree, slots.shape[-1]
        if size < 2 or degree % size or slots.dtype != np.uint64:
            raise ParameterError(f"runs of slots need uint64 values that divide {degree}, not {slots.shape}")
        if slots.size and int(slots.max()) >= self.parameters.plaintext:
            raise RangeError("a slot value is not reduced modulo p")
        values = np.take(slots, position_slots(degree) // (degree // size), axis=-1)
        self.parameters.plain_ring(degree).intt(values.reshape(-1, 1, degree))
        return Plaintext(self.parameters, values)

    def decode(self, plaintext: Plaintext) -> Words:
        """(..., M) uint64 slots of a plaintext with M coefficients (M < N: one period of each row)."""
        return self.slots_of(plaintext.coefficients.copy())

    def slots_of(self, coefficients: Words) -> Words:
        """(..., M) coefficients modulo p, overwritten -> (..., M) slots."""
        degree = coefficients.shape[-1]
        self.parameters.plain_ring(degree).ntt(coefficients.reshape(-1, 1, degree))
        return np.take(coefficients, slot_positions(degree), axis=-1)

    def to_ntt(self, plaintext: Plaintext, limbs: int | None = None, out: Words | None = None) -> Words:
        """Centred lift modulo Q in NTT form: (..., L, M) uint64, what products with plaintexts take.

        24·M bytes per plaintext of the SIMD set; a server stores its weights in this form, in one big array.
        """
        coefficients = plaintext.coefficients
        degree = coefficients.shape[-1]
        primes = self.parameters.primes[:limbs]
        if out is None:
            out = np.empty((*plaintext.batch, len(primes), degree), np.uint64)
        rows = np.ascontiguousarray(coefficients).reshape(-1, degree)
        p = self.parameters.plaintext
        _native.bgv_lift(rows, p, 1, list(primes), out.reshape(-1, len(primes), degree), threads())
        return context(degree, primes).ntt(out)

    def encode_ntt(self, slots: Words, limbs: int | None = None) -> Words:
        """(..., M) slots -> (..., L, M): `encode_periodic`, then `to_ntt`."""
        return self.to_ntt(self.encode_periodic(slots), limbs)

    def _sized(self, slots: Words, size: int) -> Words:
        if slots.shape[-1:] != (size,):
            raise ParameterError(f"expected {size} slots, got an array of shape {slots.shape}")
        return slots
