"""Polynomials in Chebyshev form on an interval, and their fits to the functions of a decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev

from sottovoce.ckks.chebyshev import minimax

Array = npt.NDArray[Any]

# Non-scalar products of Paterson–Stockmeyer in the Chebyshev basis, by the depth of the polynomial.
_PRODUCTS = {1: 1, 2: 2, 3: 4, 4: 7, 5: 11, 6: 16, 7: 25, 8: 38}


@dataclass(frozen=True)
class Chebyshev:
    """Σ c_k·T_k(y), y = x mapped from [low, high] to [-1, 1]. Outside the interval it explodes."""

    low: float
    high: float
    coefficients: tuple[float, ...]

    @property
    def radius(self) -> float:
        """Half the length of the interval."""
        return (self.high - self.low) / 2

    @property
    def degree(self) -> int:
        return len(self.coefficients) - 1

    @property
    def depth(self) -> int:
        """Levels that an evaluation takes: 7 / 15 / 31 / 63 -> 3 / 4 / 5 / 6."""
        return self.degree.bit_length()

    @property
    def products(self) -> int:
        """Products of values that an evaluation takes."""
        return _PRODUCTS[self.depth]

    def __call__(self, x: Array) -> Array:
        y = (2.0 * x - (self.low + self.high)) / (self.high - self.low)
        return np.asarray(chebyshev.chebval(y, self.coefficients))

    def scaled(self, factor: float) -> Chebyshev:
        """factor·p(x)."""
        return Chebyshev(self.low, self.high, tuple(c * factor for c in self.coefficients))

    def stretched(self, factor: float) -> Chebyshev:
        """p(x / factor): the same values when the argument comes multiplied."""
        return Chebyshev(self.low * factor, self.high * factor, self.coefficients)


def fit(
    function: Callable[[Array], Array], low: float, high: float, degree: int, relative: bool = False
) -> Chebyshev:
    """The polynomial of least largest error; `relative`: of the error over the function's value."""
    found = minimax(function, degree, low, high, relative)
    return Chebyshev(low, high, tuple(float(c) for c in found.coefficients))


def exponential(low: float, degree: int, high: float = 0.0) -> Chebyshev:
    """exp on [low, high], relative error."""
    return fit(np.exp, low, high, degree, relative=True)


def reciprocal(low: float, high: float, degree: int) -> Chebyshev:
    """1/x on [low, high], relative error."""
    return fit(lambda x: 1 / x, low, high, degree, relative=True)


def inverse_root(low: float, high: float, degree: int, eps: float = 0.0) -> Chebyshev:
    """1/√(x + eps) on [low, high], relative error."""
    return fit(lambda x: 1 / np.sqrt(x + eps), low, high, degree, relative=True)


def silu(bound: float, degree: int) -> Chebyshev:
    """x·sigmoid(x) on ±bound, absolute error."""
    return fit(lambda x: 0.5 * x * (1 + np.tanh(0.5 * x)), -bound, bound, degree)


def gelu(bound: float, degree: int) -> Chebyshev:
    """GELU (its tanh form) on ±bound, absolute error."""

    def function(x: Array) -> Array:
        return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))

    return fit(function, -bound, bound, degree)
