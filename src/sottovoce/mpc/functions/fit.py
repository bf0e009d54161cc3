"""Piecewise polynomials for spline look-ups: one polynomial for every possible start of a segment."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sottovoce.mpc import field
from sottovoce.mpc.tables import SplineTable

Real = NDArray[np.float64]


def polynomials(f: Callable[[Real], Real], starts: Real, length: float, degree: int) -> Real:
    """Coefficients (n, degree + 1) of Σ_l c_l·t^l ≈ f(start + t·length), t in [0, 1): Chebyshev
    interpolation.

    Within a small factor of the best polynomial, and linear in f's values, so that 2^18 starts take
    milliseconds.
    """
    nodes = 0.5 - 0.5 * np.cos(np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1))
    values = f(starts[:, None] + length * nodes)
    inverse = np.linalg.inv(np.vander(nodes, increasing=True))
    return np.asarray(values @ inverse.T, dtype=np.float64)


def spline_table(
    f: Callable[[Real], Real],
    *,
    low: float,
    frac_bits: int,
    segment_bits: int,
    remainder_bits: int,
    degree: int,
    result_bits: int,
    modulus: int = field.P_FIELD,
) -> SplineTable:
    """The table of f on [low, low + L·2^-frac_bits), L = 2^(segment_bits + remainder_bits), result at
    2^-result_bits.

    A segment that runs over the upper end continues f there: its other side, the first u of the domain,
    must not be used. t^l is given to the client with remainder_bits bits, so a coefficient has result_bits
    - remainder_bits: the l-th term (l >= 1) errs by at most 2^(remainder_bits - result_bits - 1) +
    abs(c_l)·2^(-remainder_bits - 1), the second part only for l >= 2.
    """
    length, u = 1 << (segment_bits + remainder_bits), 1 << remainder_bits
    # Residue a stands for the representative of a·2^-frac_bits in the domain.
    offset = round(low * 2**frac_bits)
    starts = (offset + (np.arange(length) - offset) % length) * 2.0**-frac_bits
    coefficients = polynomials(f, starts, u * 2.0**-frac_bits, degree)
    scale = np.full(degree + 1, 2.0 ** (result_bits - remainder_bits))
    scale[0] = 2.0**result_bits
    t = np.arange(u) / u
    powers = np.rint(t ** np.arange(1, degree + 1)[:, None] * u)
    entries = field.from_signed(np.rint(coefficients * scale), modulus)
    return SplineTable(segment_bits, modulus, entries, field.from_signed(powers, modulus))
