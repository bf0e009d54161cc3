"""Vectors of complex numbers to polynomials and back: the canonical embedding by one complex FFT.

n slots of period n are a polynomial with 2n real coefficients in Y = X^(N/2n). Its value at a root ζ with
ζ^n = i is Σ_{k<n} (m_k + i·m_{k+n})·ζ^k: a Fourier transform of length n of twisted complex numbers
(`slot_order` puts them in the order of the slots). Double precision: the error of a coefficient is about
2^-51 of the largest value times the scale, below the rounding to integers for scales up to 2^50.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from sottovoce import _native
from sottovoce.ckks.ciphertext import Plaintext, empty
from sottovoce.ckks.galois import slot_order
from sottovoce.ckks.parameters import Parameters
from sottovoce.errors import ParameterError, RangeError
from sottovoce.ring import context, threads

Words = npt.NDArray[np.uint64]
Complex = npt.NDArray[np.complex128]
Real = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


class Encoder:
    """Encodes and decodes for one parameter set."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters

    def encode(
        self,
        values: npt.ArrayLike,
        level: int | None = None,
        scale: float | None = None,
        wide: bool = False,
    ) -> Plaintext:
        """Slots of period n → a plaintext stored once per period.

        values: a number, or (n,) real or complex, n ≤ N/2 a power of two. level: default top. scale: default
        Δ. wide: with residues modulo the special primes too, for sums modulo Q·P. RangeError if a coefficient
        exceeds Q_level/2.
        """
        slots = np.atleast_1d(np.asarray(values, np.complex128))
        n = len(slots)
        if slots.ndim != 1 or n & (n - 1) or not 1 <= n <= self.parameters.slots:
            raise ParameterError(
                f"slots are a vector of a power of two of at most {self.parameters.slots}, "
                f"not of shape {slots.shape}"
            )
        if n == 1 and slots[0].imag == 0:
            return self.encode_coefficients(slots.real, level, scale, wide)
        return self.encode_coefficients(to_coefficients(slots), level, scale, wide)

    def encode_coefficients(
        self, coefficients: Real, level: int | None = None, scale: float | None = None, wide: bool = False
    ) -> Plaintext:
        """The polynomial Σ c_k·Y^k, Y = X^(N/M), times the scale, rounded. coefficients: (M,) real."""
        parameters = self.parameters
        level = parameters.top if level is None else parameters.check_level(level)
        scale = parameters.scale if scale is None else float(scale)
        primes = (parameters.wide_ring(level) if wide else parameters.ring(level)).primes
        data = residues(np.asarray(coefficients, np.float64) * scale, primes, parameters.modulus(level))
        return self._plaintext(data, primes, level, scale, wide)

    def encode_integers(self, coefficients: Integers, level: int, scale: float) -> Plaintext:
        """The same of coefficients that are multiplied by the scale and rounded already. (M,) int64."""
        primes = self.parameters.ring(level).primes
        data = empty(len(primes), len(coefficients))
        _native.ckks_reduce(coefficients, 0, list(primes), data, threads())
        return self._plaintext(data, primes, level, scale, False)

    def _plaintext(
        self, data: Words, primes: tuple[int, ...], level: int, scale: float, wide: bool
    ) -> Plaintext:
        size = data.shape[1]
        if size > 1:
            context(size, primes).ntt(data)
        return Plaintext(self.parameters, data, level, scale, max(size // 2, 1), wide)

    def decode(self, plaintext: Plaintext, slots: int | None = None) -> Complex:
        """(n,) complex slots; n: the plaintext's period unless given (a smaller one averages the copies)."""
        n = plaintext.slots if slots is None else slots
        coefficients = self.decode_coefficients(plaintext)
        if len(coefficients) > 2 * n:
            coefficients = coefficients[:: len(coefficients) // (2 * n)]
        return np.resize(to_slots(coefficients), n)

    def decode_coefficients(self, plaintext: Plaintext) -> Real:
        """(M,) real coefficients of the polynomial in Y = X^(N/M)."""
        size = plaintext.data.shape[1]
        # Messages are far below the modulus: four primes hold any that a double can.
        primes = self.parameters.primes[: min(plaintext.level + 1, 4)]
        data = plaintext.data[: len(primes)].copy()
        if size > 1:
            context(size, primes).intt(data)
        out = np.empty(size)
        _native.ckks_lift(data, list(primes), out, threads())
        return out / plaintext.scale


def to_coefficients(slots: Complex) -> Real:
    """(n,) complex → (2n,) real coefficients of the polynomial with these slots."""
    n = len(slots)
    ordered = np.empty(n, np.complex128)
    ordered[slot_order(n)] = slots
    twisted = np.fft.fft(ordered) * np.conj(_twist(n)) / n
    return np.concatenate([twisted.real, twisted.imag])


def to_slots(coefficients: Real) -> Complex:
    """(2n,) real → (n,) complex, or (1,) constant → (1,)."""
    if len(coefficients) == 1:
        return coefficients.astype(np.complex128)
    n = len(coefficients) // 2
    twisted = (coefficients[:n] + 1j * coefficients[n:]) * _twist(n)
    values: Complex = np.fft.ifft(twisted)[slot_order(n)] * n
    return values


@functools.lru_cache(maxsize=32)
def _twist(n: int) -> Complex:
    """exp(iπk/2n), k < n."""
    twist: Complex = np.exp(0.5j * np.pi / n * np.arange(n))
    return twist


def residues(values: Real, primes: tuple[int, ...], modulus: int) -> Words:
    """Rounded reals (M,) modulo every prime: (L, M). RangeError beyond ±modulus/2."""
    largest = float(np.max(np.abs(values), initial=0.0))
    # Not "largest >= …": an input that is not a number must not pass.
    if not largest < modulus // 2:
        raise RangeError(
            "a coefficient is not finite or does not fit the modulus of its level: lower the scale or "
            "the values"
        )
    shift = max(0, int(np.ceil(np.log2(largest + 1))) - 62)
    out = empty(len(primes), len(values))
    integers = np.rint(np.ldexp(values, -shift)).astype(np.int64)
    _native.ckks_reduce(integers, shift, list(primes), out, threads())
    return out
