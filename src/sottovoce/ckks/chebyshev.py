"""Polynomials in the Chebyshev basis of an interval, and fits of functions by them.

Coefficients of T_0 … T_d stay small where the powers of x would cancel, and a product of two T's is a sum of
two, which is what the encrypted evaluation (`paterson_stockmeyer`) builds on.

Every fit is a float64 computation on public data: a function, an interval, a degree. A fit says nothing
outside its interval, where the value of T_d grows as fast as any polynomial of its degree can: the caller
chooses intervals with a margin and states it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev

from sottovoce.errors import ParameterError

Floats = npt.NDArray[np.float64]
Function = Callable[[Floats], Floats]

_REMEZ_ROUNDS = 40
_GRID = 64  # points of the search grid per coefficient


@dataclass(frozen=True, eq=False)
class Polynomial:
    """Σ c_i·T_i(t), t = (2x − low − high)/(high − low), meant for x in [low, high]."""

    coefficients: Floats
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ParameterError(f"a polynomial needs an interval, not [{self.low}, {self.high}]")
        if self.coefficients.ndim != 1 or not len(self.coefficients):
            raise ParameterError(f"coefficients have one axis, not the shape {self.coefficients.shape}")

    @property
    def degree(self) -> int:
        return len(self.coefficients) - 1

    @property
    def centre(self) -> float:
        """What is subtracted from x before it is divided by `radius`."""
        return (self.low + self.high) / 2

    @property
    def radius(self) -> float:
        return (self.high - self.low) / 2

    def __call__(self, x: Floats) -> Floats:
        """The values at x, of any shape, in float64."""
        t = (np.asarray(x, np.float64) - self.centre) / self.radius
        return np.asarray(chebyshev.chebval(t, self.coefficients), np.float64)

    def error(self, function: Function, relative: bool = False, points: int = 20_001) -> float:
        """The largest |polynomial − function| on the interval, over the function's value if `relative`."""
        x = nodes(points, self.low, self.high)
        exact = function(x)
        return float(np.max(np.abs((self(x) - exact) / (exact if relative else 1.0))))


def nodes(count: int, low: float = -1.0, high: float = 1.0) -> Floats:
    """Chebyshev points with both ends, ascending: (count,)."""
    t = -np.cos(np.pi * np.arange(count) / (count - 1))
    return (low + high) / 2 + (high - low) / 2 * t


def interpolate(function: Function, degree: int, low: float, high: float) -> Polynomial:
    """The interpolant at the roots of T_{degree+1}: within a small factor of the best approximation."""
    t = np.cos(np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1))
    values = function((low + high) / 2 + (high - low) / 2 * t)
    coefficients = chebyshev.chebvander(t, degree).T @ values * (2 / (degree + 1))
    coefficients[0] /= 2
    return Polynomial(np.asarray(coefficients, np.float64), low, high)


def least_squares(
    x: Floats, values: Floats, weights: Floats, degree: int, low: float, high: float
) -> Polynomial:
    """The polynomial with the least Σ weights·(p(x) − values)²; all arrays (points,)."""
    if not len(x) == len(values) == len(weights) > degree:
        raise ParameterError(f"a fit of degree {degree} needs more than {len(x)} points of equal number")
    t = (x - (low + high) / 2) / ((high - low) / 2)
    root = np.sqrt(weights)
    matrix = chebyshev.chebvander(t, degree) * root[:, None]
    solution = np.linalg.lstsq(matrix, values * root, rcond=None)[0]
    return Polynomial(np.asarray(solution, np.float64), low, high)


def minimax(function: Function, degree: int, low: float, high: float, relative: bool = False) -> Polynomial:
    """The polynomial with (nearly) the least largest error on [low, high]; Remez exchange.

    relative: the error divided by the function's value, which then must have no zero in the interval.

    Stops when the error is level to 1 % or float64 shows no more; the best of all rounds is returned, so a
    degree that float64 cannot resolve gives no worse than the interpolant.
    """
    grid = nodes(max(2001, _GRID * (degree + 2)), low, high)
    exact = function(grid)
    weight = 1 / np.abs(exact) if relative else np.ones_like(grid)
    best = interpolate(function, degree, low, high)
    smallest = np.max(np.abs(best(grid) - exact) * weight)
    reference = np.round(np.linspace(0, len(grid) - 1, degree + 2)).astype(np.int64)
    signs = (-1.0) ** np.arange(degree + 2)
    t = (grid - best.centre) / best.radius
    for _ in range(_REMEZ_ROUNDS):
        matrix = np.column_stack([chebyshev.chebvander(t[reference], degree), signs / weight[reference]])
        try:
            solution = np.linalg.solve(matrix, exact[reference])
        except np.linalg.LinAlgError:
            break
        candidate = Polynomial(np.asarray(solution[:-1], np.float64), low, high)
        error = (candidate(grid) - exact) * weight
        largest = np.max(np.abs(error))
        if largest < smallest:
            best, smallest = candidate, largest
        exchanged = _extrema(error, degree + 2)
        if exchanged is None or largest <= 1.01 * abs(solution[-1]):
            break
        reference = exchanged
    return best


def _extrema(error: Floats, count: int) -> npt.NDArray[np.int64] | None:
    """Positions of `count` extrema of alternating sign, the largest among them; None if there are fewer."""
    positive = error > 0
    ends = np.flatnonzero(np.diff(positive)) + 1
    pieces = np.split(np.arange(len(error)), ends)
    peaks = [int(piece[np.argmax(np.abs(error[piece]))]) for piece in pieces]
    while len(peaks) > count:
        # Neighbours alternate, so one extremum may go from an end, otherwise a pair of neighbours.
        sizes = np.abs(error[peaks])
        if len(peaks) == count + 1:
            peaks = peaks[1:] if sizes[0] < sizes[-1] else peaks[:-1]
        else:
            weakest = int(np.argmin(np.maximum(sizes[:-1], sizes[1:])))
            del peaks[weakest : weakest + 2]
    return np.array(peaks, np.int64) if len(peaks) == count else None
