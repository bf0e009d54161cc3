"""C·x^-1 and C·x^(-1/2) over a wide range, for few elements (protocols.md 4.8).

The range is cut into windows [M/2^w, M), M = 2^(bottom + w·j). In each window v = x/M mod 1 is had by local
reduction of the shares, one spline (1-of-2^(w+2), degree 3) gives κ·v^-e for all windows with the same table,
and one bit says "x mod 2M is at least about M/2^w". The highest window whose bit is set is the right one: a
suffix of ANDs makes the selection one-hot, MUX and a sum pick. Windows and their number are public. Wide
windows (w up to 4) are few, which saves rounds, and their tables are larger, which costs bytes.

The bit's threshold is fuzzy by M/2^(w+3), always towards a larger set: any x >= M/2^w sets it or a higher
one, and for x >= 0.87·M/2^w the spline of this window is good. Look-ups on the bit use the ring mod 2M, so
that the segment that runs over the ring's end lies where a higher window decides.

Rounds: wrap to Z_2^k 1, look-up 2, suffix ANDs ceil(lg(windows - 1)) (the spline's rescaling rides on the
first), MUX 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby
from typing import Any

import numpy as np

from sottovoce.mpc import cost
from sottovoce.mpc.arithmetic import Arithmetic
from sottovoce.mpc.cost import Cost
from sottovoce.mpc.field import Bits
from sottovoce.mpc.field import Field as Share
from sottovoce.mpc.functions.fit import polynomials, spline_table
from sottovoce.mpc.requests import And, RegionLookup, Request, SplineLookup, Wrap, WrapOutput
from sottovoce.mpc.tables import RegionTable, SplineTable

SIGNIFICANT_BITS = 14  # of the spline's result after rescaling, at v = 1
_RING = 14  # bits of v beyond w
_SEGMENT = 2  # of the spline's segments, beyond w
_RESULT = 26  # bits of the spline's result before rescaling
# No segment that is used starts below (v·2^w >= 0.87, segments of 1/4); the table is flat there.
_LOWEST = 0.6
_BIT_RING = 10  # beyond w
_BIT_SEGMENT = 4


@dataclass(frozen=True)
class InversePower:
    """x -> C·x^-e, 2^(bottom - w) <= x < 2^(bottom + w·windows - w), x an integer below p/2; e is 1 or 1/2,
    e·w an integer.

    The smallest result (at the top of the range) should have SIGNIFICANT_BITS bits or nearly; the relative
    error is about 1e-4 plus half a unit of the result.
    """

    exponent: float
    scale: float  # C
    bottom: int
    windows: int
    width: int = 2  # w

    @property
    def top(self) -> int:
        """x < 2^top."""
        return self.bottom + self.width * (self.windows - 1)

    @property
    def highs(self) -> list[int]:
        """lg M of every window."""
        return [self.bottom + self.width * j for j in range(self.windows)]

    @cached_property
    def mantissa(self) -> float:
        """κ in [1, 2): the result at the upper end of window j, C·M_j^-e, is κ·2^exponents[j]."""
        return float(2.0 ** (np.log2(self.scale * 2.0 ** (-self.exponent * self.bottom)) % 1.0))

    @cached_property
    def exponents(self) -> tuple[int, ...]:
        """lg of C·M_j^-e / κ for every window, falling by e·w from one to the next."""
        first = np.log2(self.scale / self.mantissa) - self.exponent * self.bottom
        step = self.exponent * self.width
        return tuple(round(float(first - step * j)) for j in range(self.windows))

    @cached_property
    def kept_bits(self) -> tuple[int, ...]:
        """Fractional bits that each window's spline keeps; the rest of its exponent is multiplied back.

        Negative where the result is below 1: a window that only absurd inputs reach, and that must exist.
        """
        return tuple(min(SIGNIFICANT_BITS, exponent) for exponent in self.exponents)

    @cached_property
    def runs(self) -> tuple[tuple[int, int, int], ...]:
        """(first window, end, bits kept) for each run of windows that keep the same number of bits."""
        groups = [list(group) for _, group in groupby(range(self.windows), key=self.kept_bits.__getitem__)]
        return tuple((group[0], group[-1] + 1, self.kept_bits[group[0]]) for group in groups)


@lru_cache(maxsize=1024)
def covering(exponent: float, scale: float, low: float, high: float, width: int = 2) -> InversePower:
    """The fewest windows of that width that cover low <= x < high, low >= 1."""
    top = max(width, int(np.ceil(np.log2(high))))
    windows = max(1, int(np.ceil((top - np.log2(low)) / width - 1e-9)))
    # M/2^w is an integer: a few bits more at the top where the bottom window would begin below 1.
    bottom = max(width, top - width * (windows - 1))
    return InversePower(exponent, scale, bottom, windows, width)


@lru_cache(maxsize=64)
def _spline(exponent: float, mantissa: float, width: int) -> SplineTable:
    return spline_table(
        lambda v: mantissa * np.maximum(v, _LOWEST * 2.0**-width) ** -exponent,
        low=0.0,
        frac_bits=_RING + width,
        segment_bits=_SEGMENT + width,
        remainder_bits=_RING - _SEGMENT,
        degree=3,
        result_bits=_RESULT,
    )


@lru_cache(maxsize=4)
def _at_least(width: int) -> RegionTable:
    """Bit on x mod 2M: the segment ends above M/2^w and does not run over 2M."""
    ring, remainder = _BIT_RING + width, _BIT_RING - _BIT_SEGMENT
    start = np.arange(1 << ring)
    end = start + (1 << remainder)
    lowest = 1 << (ring - 1 - width)
    # One unit of guard below for the local truncation; a segment that ends at 2M itself does not run over.
    bit = (end >= lowest - 1) & (end <= 1 << ring)
    return RegionTable(_BIT_SEGMENT + width, remainder, 1, bit.astype(np.uint8))


def evaluate(
    arithmetic: Arithmetic, x: Share, function: InversePower, ride: Sequence[Request] = ()
) -> tuple[Share, list[Any]]:
    """C·x^-e as an integer mod p for x mod p, any shape; and the results of `ride` (in the first
    exchange)."""
    arithmetic.require_range(x, 1 << (function.bottom - function.width), 1 << function.top)
    ring_bits = function.top + 1
    (y,), *riders = arithmetic.exchange([Wrap(x, (WrapOutput(0, 1 << ring_bits),), signed=False), *ride])
    highs, width = function.highs, function.width
    spline = _spline(function.exponent, function.mantissa, width)
    lookups: list[Any] = [SplineLookup(arithmetic.take_windows(y, highs, _RING + width), spline)]
    if function.windows == 1:
        return _rescaled(arithmetic, arithmetic.lookup(lookups)[0], function, [])[0][..., 0], riders
    tops = [high + 1 for high in highs[1:]]
    lookups.append(RegionLookup(arithmetic.take_windows(y, tops, _BIT_RING + width), _at_least(width)))
    values, bits = arithmetic.lookup(lookups)
    chosen, scaled = _choose(arithmetic, arithmetic.not_(bits[..., 0]), values, function)
    return arithmetic.sum(arithmetic.mux(chosen, scaled)), riders


def _choose(arithmetic: Arithmetic, none: Bits, values: Share, function: InversePower) -> tuple[Bits, Share]:
    """One-hot selection (..., windows) and the values at their final scale.

    none: (..., windows - 1), bit j - 1: window j is not set. After the suffix ANDs it says that neither
    window j nor any above is; these are monotone, so neighbours differ exactly at the highest window that
    is set.
    """
    scaled: Share | None = None
    distance = 1
    while distance < function.windows - 1:
        step = And(none[..., :-distance], none[..., distance:])
        if scaled is None:
            scaled, (lower,) = _rescaled(arithmetic, values, function, [step])
        else:
            (lower,) = arithmetic.exchange([step])
        none = np.concatenate([lower, none[..., -distance:]], axis=-1)
        distance *= 2
    if scaled is None:
        scaled, _ = _rescaled(arithmetic, values, function, [])
    top = arithmetic.not_(none[..., -1:])
    middle = arithmetic.xor(none[..., :-1], none[..., 1:])
    return np.concatenate([none[..., :1], middle, top], axis=-1), scaled


def _rescaled(
    arithmetic: Arithmetic, values: Share, function: InversePower, ride: Sequence[Request]
) -> tuple[Share, list[Any]]:
    """Splines from 2^-_RESULT to each window's own scale, in one exchange that takes `ride` along."""
    runs = function.runs
    wraps = [
        Wrap(values[..., first:end], (WrapOutput(_RESULT - kept),), signed=False) for first, end, kept in runs
    ]
    results = arithmetic.exchange([*wraps, *ride])
    narrow = np.concatenate([result[0] for result in results[: len(runs)]], axis=-1)
    shifts = [1 << (e - kept) for e, kept in zip(function.exponents, function.kept_bits, strict=True)]
    return arithmetic.mul_public(narrow, np.array(shifts)), results[len(runs) :]


def evaluate_cost(n: int, function: InversePower, ride: int = 0) -> Cost:
    """Online cost of `evaluate` on n elements with `ride` bytes of riders."""
    windows = function.windows
    table = _spline(function.exponent, function.mantissa, function.width)
    total = cost.exchange(cost.bits(n), ride)
    wraps = [cost.bits(n * (end - first)) for first, end, _ in function.runs]
    if windows == 1:
        return total + cost.lookup((n, table)) + cost.exchange(*wraps)
    total += cost.lookup((n * windows, table), (n * (windows - 1), _at_least(function.width)))
    distance, riding = 1, wraps
    while distance < windows - 1:
        total += cost.exchange(*riding, cost.ands(n * (windows - 1 - distance)))
        distance, riding = 2 * distance, []
    if riding:
        total += cost.exchange(*riding)
    return total + cost.exchange(cost.muxes(n * windows))


def relative_error(function: InversePower) -> float:
    """Largest relative error of the spline where a window is used, without the rounding of the result."""
    u = 2.0 ** -(_SEGMENT + function.width)
    starts = np.linspace(_LOWEST * 2.0**-function.width, 1.0 - u, 512)
    exact = (starts[:, None] + u * np.linspace(0, 1, 33)) ** -function.exponent
    c = polynomials(lambda v: v**-function.exponent, starts, u, 3)
    approx = sum(c[:, i, None] * np.linspace(0, 1, 33) ** i for i in range(4))
    return float(np.max(np.abs(np.asarray(approx) / exact - 1)))
