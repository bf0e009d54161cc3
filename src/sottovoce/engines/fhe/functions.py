"""The polynomials of a model: norms, exponential, inverses and activation, each on a range with a margin.

A polynomial outside its range does not saturate, it explodes, and ruins every slot of the ciphertext. So
every range is what the model showed on text that it wrote itself, widened by `Margins`; a run in the clear
(`simulate`) reports arguments that leave them.

Softmax: z is a score less a linear prediction of its row's log-sum. u = exp(z/2^rounds), from a polynomial
of exp(z/2^(rounds + squarings)) and squarings; then `rounds` times: multiply by a coarse 1/Σu, square; then
one accurate 1/Σ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sottovoce.packing.slots import Chebyshev
from sottovoce.packing.slots import polynomial as polynomials

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Margins:
    """How far ranges reach beyond what was seen. Factors, each to one side."""

    norm_low: float = 2.5
    norm_high: float = 2.0
    activation: float = 1.6
    score_low: float = 1.6
    score_high: float = 8.0  # added, in nats: rows whose log-sum was predicted too low
    sum_low: float = 3.0
    sum_high: float = 2.5


@dataclass(frozen=True)
class Degrees:
    norm: int = 31
    activation: int = 31
    exponential: int = 15
    coarse: int = 31
    accurate: int = 63
    rounds: int = 2
    squarings: int = 4


@dataclass(frozen=True)
class Predictor:
    """What is subtracted from scores: w·q with w = direct + rotated by the position, plus offset +
    slope·log(tokens in the context). Shapes (heads, head_dim), (heads, head_dim), (heads,), (heads,)."""

    direct: Array
    rotated: Array
    offset: Array
    slope: Array


@dataclass(frozen=True)
class BlockFunctions:
    """norm1, norm2: 1/√ of the mean square (variance). activation: of gate, or of up without one."""

    norm1: Chebyshev
    norm2: Chebyshev
    activation: Chebyshev
    predictor: Predictor


@dataclass(frozen=True)
class Functions:
    """exponential: of z/2^(rounds + squarings). coarse: one inverse for each round. scale: scores are
    refreshed divided by it."""

    blocks: tuple[BlockFunctions, ...]
    norm: Chebyshev
    exponential: Chebyshev
    coarse: tuple[Chebyshev, ...]
    accurate: Chebyshev
    squarings: int
    scale: float

    @property
    def rounds(self) -> int:
        return len(self.coarse)


def softmax_functions(
    z: Array, margins: Margins, degrees: Degrees
) -> tuple[Chebyshev, tuple[Chebyshev, ...], Chebyshev]:
    """Exponential and inverses from rows of shifted scores (rows, tokens), nan where there is no token:
    every round is fitted to what the rounds before it leave."""
    live = ~np.isnan(z)
    low = margins.score_low * float(z[live].min())
    high = float(z[live].max()) + margins.score_high
    shrink = 2.0 ** (degrees.rounds + degrees.squarings)
    power = polynomials.fit(np.exp, low / shrink, high / shrink, degrees.exponential)
    u = np.zeros_like(z)
    u[live] = power(z[live] / shrink) ** 2**degrees.squarings
    coarse = []
    for _ in range(degrees.rounds):
        sums = u.sum(axis=1)
        inverse = polynomials.reciprocal(*_range(sums, margins), degrees.coarse)
        u = (u * inverse(sums)[:, None]) ** 2
        coarse.append(inverse)
    accurate = polynomials.reciprocal(*_range(u.sum(axis=1), margins), degrees.accurate)
    return power, tuple(coarse), accurate


def _range(sums: Array, margins: Margins) -> tuple[float, float]:
    return float(sums.min()) / margins.sum_low, float(sums.max()) * margins.sum_high
