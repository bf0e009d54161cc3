"""Slim evaluation: a polynomial of degree 2^r on a periodic ciphertext by r squarings and r rotations.

An even-degree polynomial with a positive leading coefficient is bounded below, so P + m > 0 on the whole line
for some m, and then P + m = |g|² = U² + V² with U, V of half the degree: g takes one root of every conjugate
pair, and turned by 45° both U and V have the same positive leading coefficient, so both can be split again.
After r steps 2^r leaves a·(x + c_b) with one common a are left. The tree is evaluated in the blocks of one
ciphertext: block b holds x + c_b; square everything, add the rotation by half of the blocks that are left,
subtract the m's.

Which root of a pair goes into g decides how large the next m's are, which costs precision: `split` tries many
choices. Source: the shape of the method (one ciphertext, squarings and rotations) is Cachemir's; the split
and the search are this package's derivation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import log2

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev

from sottovoce.ckks.chebyshev import Floats, Polynomial, nodes
from sottovoce.ckks.ciphertext import Ciphertext
from sottovoce.ckks.evaluator import Evaluator
from sottovoce.errors import ParameterError

_SLACK = 0.02  # of m, so that no root lies on the line
_PATTERNS = 40
_FREE_SCALE = 0.01  # lg: an error of the first scale doubles with every squaring

Complexes = npt.NDArray[np.complex128]
Signs = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Split:
    """A polynomial as a tree of sums of squares.

    polynomial: what the tree computes. factor: the a of the leaves, on t in [−1, 1]. leaves: (2^r,) a·c_b.
    subtract: after squaring i, (2^(r − 1 − i),) the m's of the nodes of that stage.
    """

    polynomial: Polynomial
    factor: float
    leaves: Floats
    subtract: tuple[Floats, ...]

    @property
    def depth(self) -> int:
        """Levels, and also the squarings and the rotations."""
        return len(self.subtract)

    @property
    def blocks(self) -> int:
        return len(self.leaves)

    def best_scale(self, scale: float) -> float:
        """The scale at which x should arrive, so that turning it into a leaf costs no level."""
        return scale * self.factor / self.polynomial.radius

    def __call__(self, x: Floats) -> Floats:
        """The tree in float64, any shape."""
        t = (np.asarray(x, np.float64) - self.polynomial.centre) / self.polynomial.radius
        value = self.factor * t[..., None] + self.leaves
        for m in self.subtract:
            half = value.shape[-1] // 2
            value = value[..., :half] ** 2 + value[..., half:] ** 2 - m
        result: Floats = value[..., 0]
        return result

    def largest(self, points: int = 2001) -> float:
        """The largest absolute value of a node on the interval: what precision is lost to."""
        t = nodes(points)
        value, largest = self.factor * t[:, None] + self.leaves, 0.0
        for m in self.subtract:
            half = value.shape[-1] // 2
            value = value[..., :half] ** 2 + value[..., half:] ** 2 - m
            largest = max(largest, float(np.abs(value).max()))
        return largest


def eligible(polynomial: Polynomial, epsilon: float) -> Polynomial:
    """The polynomial plus ε·T_d, d the next power of two: even degree and a positive leading coefficient.

    Changes values inside the interval by at most ε, which belongs below the error that is tolerated.
    """
    degree = 1 << polynomial.degree.bit_length()
    if polynomial.degree == degree // 2 and polynomial.coefficients[-1] > 0:
        return polynomial
    coefficients = np.zeros(degree + 1)
    coefficients[: polynomial.degree + 1] = polynomial.coefficients
    coefficients[-1] = epsilon
    return Polynomial(coefficients, polynomial.low, polynomial.high)


def split(polynomial: Polynomial) -> Split:
    """The tree of a polynomial of degree 2^r ≥ 2 with a positive leading coefficient (`eligible`)."""
    degree = polynomial.degree
    if degree < 2 or degree & (degree - 1) or polynomial.coefficients[-1] <= 0:
        raise ParameterError("slim evaluation needs a degree 2^r and a positive leading coefficient")
    stage = [polynomial.coefficients]
    subtract: list[Floats] = []
    while len(stage[0]) > 2:
        shifts = np.array([_shift(c) for c in stage])
        subtract.append(shifts)
        pairs = [_squares(c, m) for c, m in zip(stage, shifts, strict=True)]
        stage = [u for u, _ in pairs] + [v for _, v in pairs]
    factor = float(np.mean([c[1] for c in stage]))
    leaves = np.array([c[0] for c in stage])
    return Split(polynomial, factor, leaves, tuple(reversed(subtract)))


def _shift(coefficients: Floats) -> float:
    """m: 2 % more than what makes the polynomial non-negative on the whole line."""
    slopes = chebyshev.chebroots(chebyshev.chebder(coefficients))
    flat = slopes.real[np.abs(slopes.imag) < 1e-3 * (1 + np.abs(slopes.real))]
    values = chebyshev.chebval(np.concatenate([flat, nodes(8 * len(coefficients))]), coefficients)
    least, spread = float(values.min()), float(np.std(values[len(flat) :]))
    return -least + _SLACK * max(abs(least), spread)


def _squares(coefficients: Floats, m: float) -> tuple[Floats, Floats]:
    """U and V with U² + V² = P + m, chosen so that their own shifts are small."""
    raised = coefficients.copy()
    raised[0] += m
    half = (len(coefficients) - 1) // 2
    # The companion matrix gives a root and its conjugate; polish one of each.
    roots = _polished(raised, np.asarray(chebyshev.chebroots(raised), np.complex128))
    upper = roots[np.argsort(roots.imag)][half:]
    upper = upper[np.argsort(upper.real)]
    at = nodes(half + 1) if half else np.zeros(1)
    # chebyshev coefficient d is 2^(1 − d) of the power coefficient; spread it over the factors.
    lead = (coefficients[-1] * 2.0 ** (len(coefficients) - 2)) ** (1 / (2 * half))
    best: tuple[float, Floats, Floats] | None = None
    for signs in _patterns(half):
        chosen = np.where(signs, upper, upper.conj())
        g = np.prod(lead * (at[:, None] - chosen[None, :]), axis=1) * np.exp(0.25j * np.pi)
        u, v = _interpolate(g.real), _interpolate(g.imag)
        if half == 1:
            return u, v
        worst = max(abs(_shift(u)), abs(_shift(v)))
        if best is None or worst < best[0]:
            best = worst, u, v
    assert best is not None
    return best[1], best[2]


def _polished(coefficients: Floats, roots: Complexes) -> Complexes:
    """Three steps of Newton's method, kept where they reduce the value."""
    derivative = chebyshev.chebder(coefficients)
    for _ in range(3):
        value = chebyshev.chebval(roots, coefficients)
        moved = roots - value / chebyshev.chebval(roots, derivative)
        better = np.abs(chebyshev.chebval(moved, coefficients)) < np.abs(value)
        roots = np.where(better, moved, roots)
    return roots


def _interpolate(values: Floats) -> Floats:
    """Chebyshev coefficients of the polynomial through `values` at `nodes(len(values))`."""
    count = len(values)
    matrix = chebyshev.chebvander(nodes(count), count - 1)
    return np.asarray(np.linalg.solve(matrix, values), np.float64)


def _patterns(count: int) -> Iterator[Signs]:
    """Which root of each pair: alternating, then fixed pseudo-random choices (all if they are few)."""
    yield np.arange(count) % 2 == 0
    if 1 << count <= _PATTERNS:
        for code in range(1 << count):
            yield (code >> np.arange(count)) & 1 == 1
        return
    drawn = hashlib.shake_128(b"slim").digest(_PATTERNS * count)
    yield from (np.frombuffer(drawn, np.uint8).reshape(_PATTERNS, count) & 1).astype(bool)


def evaluate(evaluator: Evaluator, x: Ciphertext, how: Split) -> Ciphertext:
    """The polynomial at every slot of x, which keeps its period.

    x: slots in [low, high], period n with n·blocks ≤ N/2; beyond the interval the result grows without
    bound. Takes `how.depth` levels, as many relinearisations and rotations (by n·2^i), and one more level
    if x's scale is not `how.best_scale` of the prime at its level.
    """
    period, parameters = x.slots, evaluator.parameters
    if period * how.blocks > parameters.slots:
        raise ParameterError(f"{how.blocks} blocks of {period} slots do not fit {parameters.slots}")
    value = _leaves(evaluator, x, how)
    blocks = how.blocks
    for m in how.subtract:
        squared = evaluator.square(value)
        blocks //= 2
        total = evaluator.add(squared, evaluator.rotate(squared, blocks * period))
        shifts = np.repeat(m, period)
        value = evaluator.sub_plain(
            total.with_slots(blocks * period),
            evaluator.encoder.encode(shifts, level=total.level, scale=total.scale),
        )
    return value


def _leaves(evaluator: Evaluator, x: Ciphertext, how: Split) -> Ciphertext:
    """a·t + leaf b in block b, at the scale that squarings keep."""
    polynomial = how.polynomial
    value = x.with_scale(x.scale * polynomial.radius / how.factor)
    usual = float(evaluator.parameters.primes[x.level])
    if abs(log2(value.scale / usual)) > _FREE_SCALE:
        usual = float(evaluator.parameters.primes[x.level - 1])
        value = evaluator.match(value, x.level - 1, usual)
    constants = how.leaves - how.factor * polynomial.centre / polynomial.radius
    wide = value.with_slots(x.slots * how.blocks)
    plain = evaluator.encoder.encode(np.repeat(constants, x.slots), level=wide.level, scale=wide.scale)
    return evaluator.add_plain(wide, plain)
