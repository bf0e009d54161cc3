"""The polynomials of a model: norms, exponential, inverses and activation, each on a range with a margin.

A polynomial outside its range does not saturate, it explodes, and ruins every slot of the ciphertext. So
every range is what the model showed on text that it wrote itself, widened by `Margins`; a run in the clear
(`simulate`) reports arguments that leave them.

Softmax: z is a score less a linear prediction of 2^rounds·log Σ exp(score/2^rounds). u = exp(z/2^rounds),
from a polynomial of exp(z/2^(rounds + squarings)) and squarings; then `rounds` times: multiply by a coarse
1/Σu, square; then one accurate 1/Σ; then `polish` times: multiply by 2 − Σ, a Newton step.

A square of normalised rows adds up to Σp², for a flat row of 1,000 tokens to a thousandth of what a row with
one likely token has; a refresh has the same error for both. So a round multiplies by 1/(m·Σu) instead, m²
being the most that Σp² is for this head and so many tokens (`Spread`): rows add up to nearly 1 again,
whatever their length. m is in the mask that a sum is multiplied by anyway.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sottovoce.models.config import Config
from sottovoce.packing.slots import Chebyshev
from sottovoce.packing.slots import polynomial as polynomials

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
_SHORT = 64  # tokens of a context whose sums one inverse is accurate for


@dataclass(frozen=True)
class Margins:
    """How far ranges reach beyond what was seen. Factors, each to one side."""

    norm_low: float = 2.5
    norm_high: float = 2.0
    activation: float = 2.1
    score_low: float = 1.6
    score_high: float = 8.0  # added, in nats: rows whose log-sum was predicted too low
    coarse_low: float = 2.5
    coarse_high: float = 2.0
    sum_low: float = 1.7
    sum_high: float = 1.5


@dataclass(frozen=True)
class Degrees:
    norm: int = 31
    activation: int = 31
    exponential: int = 15
    coarse: int = 31
    accurate: int = 63
    rounds: int = 2
    squarings: int = 4
    polish: int = 0


def degrees_for(tokens: int) -> Degrees:
    """For contexts of up to `tokens`: the sums of a softmax spread over as wide a range as rows are long."""
    return Degrees(polish=int(tokens > _SHORT))


@dataclass(frozen=True)
class Predictor:
    """What is subtracted from scores: w·q with w = direct + rotated by the position, plus offset +
    slope·log(tokens in the context). Shapes (heads, head_dim), (heads, head_dim), (heads,), (heads,)."""

    direct: Array
    rotated: Array
    offset: Array
    slope: Array


@dataclass(frozen=True)
class Spread:
    """The most that √Σp² of a softmax's rows is, as a power of their length. (rounds, heads) each."""

    offset: Array
    slope: Array

    def weights(self, i: int, lengths: npt.ArrayLike) -> Array:
        """m of round i, (heads, rows), for rows of so many tokens; never outside what p allows."""
        log = np.log(np.asarray(lengths, np.float64)).reshape(-1)
        fitted = self.offset[i][:, None] + self.slope[i][:, None] * log
        return np.asarray(np.exp(np.clip(fitted, -log / 2, 0.0)))


@dataclass(frozen=True)
class BlockFunctions:
    """norm1, norm2: 1/√ of the mean square (variance). activation: of gate, or of up without one."""

    norm1: Chebyshev
    norm2: Chebyshev
    activation: Chebyshev
    predictor: Predictor
    spread: Spread


@dataclass(frozen=True)
class Functions:
    """exponential: of z/2^(rounds + squarings). coarse: one inverse for each round, of m·Σu. sums: the most
    that Σu may be, before each inverse. residual: ρ, by which the residual stream is divided."""

    blocks: tuple[BlockFunctions, ...]
    norm: Chebyshev
    exponential: Chebyshev
    coarse: tuple[Chebyshev, ...]
    accurate: Chebyshev
    sums: tuple[float, ...]
    squarings: int
    residual: float
    polish: int = 0

    @property
    def shrink(self) -> float:
        return float(2.0 ** (self.rounds + self.squarings))

    @property
    def scale(self) -> float:
        """Scores are divided by it: the exponential's argument gets radius 1."""
        return self.shrink * self.exponential.radius

    def key_scale(self, head_dim: int) -> float:
        """What keys, and queries, are multiplied by: alike, because they are the two parts of one complex
        value and share its noise. Twice their product is the score over `scale`, and half of 1/√d_h."""
        return float(np.sqrt(0.5 / (self.scale * np.sqrt(head_dim))))

    @property
    def rounds(self) -> int:
        return len(self.coarse)


@dataclass(frozen=True)
class Softmax:
    """What `Functions` has of a softmax; the spread of every group of rows."""

    exponential: Chebyshev
    coarse: tuple[Chebyshev, ...]
    accurate: Chebyshev
    sums: tuple[float, ...]
    spread: Spread


def softmax_functions(z: Array, groups: Integers, margins: Margins, degrees: Degrees) -> Softmax:
    """From rows of shifted scores (rows, tokens), nan where there is no token: every round is fitted to what
    the rounds before it leave. groups: (rows,) which head of which layer, counted from 0."""
    live = ~np.isnan(z)
    lengths = live.sum(axis=1)
    low = margins.score_low * float(z[live].min())
    high = float(z[live].max()) + margins.score_high
    shrink = 2.0 ** (degrees.rounds + degrees.squarings)
    power = polynomials.fit(np.exp, low / shrink, high / shrink, degrees.exponential)
    u = np.zeros_like(z)
    u[live] = power(z[live] / shrink) ** 2**degrees.squarings
    coarse, most, fits = [], [], []
    for _ in range(degrees.rounds):
        sums = u.sum(axis=1)
        most.append(float(sums.max()) * margins.coarse_high)
        fits.append(_powers(((u / sums[:, None]) ** 2).sum(axis=1), lengths, groups))
        weights = Spread(*fits[-1][:, None]).weights(0, lengths)[groups, np.arange(len(z))]
        inverse = polynomials.reciprocal(
            *_range(weights * sums, margins.coarse_low, margins.coarse_high), degrees.coarse
        )
        u = (u * inverse(weights * sums)[:, None]) ** 2
        coarse.append(inverse)
    low, high = _range(u.sum(axis=1), margins.sum_low, margins.sum_high)
    accurate = polynomials.reciprocal(low, high, degrees.accurate)
    return Softmax(power, tuple(coarse), accurate, (*most, high), Spread(*np.stack(fits, axis=1)))


def _powers(squares: Array, lengths: Integers, groups: Integers) -> Array:
    """Offset and slope of a line over log(length) that log √Σp² of a group's rows just reaches, (2, groups).

    Above the rows and not amid them: a group whose rows differ much then ends where the others do, and all
    sums together have no wider a range than those of one group. A little ridge: rows of one length have no
    slope.
    """
    found = np.zeros((2, int(groups.max()) + 1))
    for group in range(found.shape[1]):
        rows = groups == group
        a = np.stack([np.ones(rows.sum()), np.log(lengths[rows])], axis=1)
        ridge = 1e-3 * np.sqrt(rows.sum()) * np.eye(2)
        target = np.log(squares[rows]) / 2
        line = np.linalg.lstsq(np.concatenate([a, ridge]), np.append(target, [0.0, 0.0]), rcond=None)[0]
        line[0] += (target - a @ line).max()
        found[:, group] = line
    return found


def _range(sums: Array, low: float, high: float) -> tuple[float, float]:
    return float(sums.min()) / low, float(sums.max()) * high


def residual_scale(norms: list[Chebyshev], gain: float) -> float:
    """ρ. Squares of x/ρ have to reach every norm's polynomial at radius 1 by a whole factor: ρ² is at least
    the largest radius, and the one of a few that all factors fit best."""
    radii = np.array([norm.radius * gain for norm in norms])
    candidates = radii.max() * 2.0 ** np.linspace(0.0, 1.5, 61)
    misfit = [max(abs(np.log2(whole_factor(r / c) * r / c)) for r in radii) for c in candidates]
    return float(np.sqrt(candidates[int(np.argmin(misfit))]))


def whole_factor(radius: float) -> int:
    """The whole number that brings a radius of at most 1 nearest to 1."""
    below = max(1, int(1 / radius))
    return min((below, below + 1), key=lambda k: abs(np.log2(k * radius)))


def norm_gain(config: Config) -> float:
    """What the program computes over the mean square: d, or d² times the variance."""
    return float(config.width if config.norm == "rms" else config.width**2)
