"""RMSNorm and LayerNorm without gains, which belong to the next matrix (protocols.md 7.4).

y = x / rms(x), rms² = mean(x²), for rows x at 2^-23 (a residual stream), y at 2^-12. Rounds of `rms_norm`,
10 with 4 or 5 windows: 1. one wrap bit, two outputs: x at 2^-x_bits to be scaled, x at 2^-s to be squared;
2. mask the first, open the second: Σx² ; 3. C·(Σx²)^(-1/2) by windows: 1/rms at 2^-scale_bits (6 rounds);
4. the scalar is opened under its mask, which scales the row; 5. rescale to 2^-12.

Budget, all public and derived from [low, high], the range of the mean square:
- Σx² at 2^-2s: width·high·4^s < p/2, which fixes s (6 where a row may reach 7e5, 10 in the first layers);
- 1/rms at 2^-scale_bits has SIGNIFICANT_BITS or one less at the top of the range;
- abs(y) <= √width, so √width·2^(x_bits + scale_bits) < p/4 fixes x_bits: narrow ranges keep more bits of x.

The reader's epsilon (1e-5) is added to Σx² as a public constant. A mean square outside [low, high) is not
detected by two parties (the row is garbled); the model raises RangeError. Ranges: `numbers.md` 3.2, widened
four times each side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sottovoce.mpc import cost
from sottovoce.mpc.arithmetic import Arithmetic
from sottovoce.mpc.cost import Cost
from sottovoce.mpc.field import P_FIELD
from sottovoce.mpc.field import Field as Share
from sottovoce.mpc.functions.exact import exact_cost, exact_rescales
from sottovoce.mpc.functions.fit import Real
from sottovoce.mpc.functions.inverse_power import (
    SIGNIFICANT_BITS,
    InversePower,
    covering,
    evaluate,
    evaluate_cost,
)
from sottovoce.mpc.requests import MaskRows, SumSquares, WrapOutput

IN_BITS = 23
OUT_BITS = 12
_WINDOW = 4  # bits of a window of 1/rms: there are few rows, so that rounds count and bytes do not


@dataclass(frozen=True)
class NormRange:
    """Public range of one norm: width of a row and low <= mean(x²) < high, both already widened."""

    width: int
    low: float
    high: float
    epsilon: float = 1e-5

    @cached_property
    def square_bits(self) -> int:
        """s: the squared copy of x is at 2^-s. One bit is left for its rounding."""
        room = np.log2(P_FIELD / 2) - np.log2(self.width * (self.high + self.epsilon)) - 0.1
        return min(int(np.floor(room / 2)), IN_BITS)

    @cached_property
    def inverse(self) -> InversePower:
        """Σx² at 2^-2s -> 1/rms at 2^-scale_bits."""
        unit = self.width * 4.0**self.square_bits  # Σx² of a row whose mean square is 1
        low, high = (self.low + self.epsilon) * unit, (self.high + self.epsilon) * unit
        scale = np.sqrt(unit) * 2.0**self.scale_bits
        return covering(0.5, scale, max(low * 0.98, 4.0), high * 1.02, _WINDOW)

    @cached_property
    def scale_bits(self) -> int:
        """Fractional bits of 1/rms, so that its smallest value has SIGNIFICANT_BITS - 1 to SIGNIFICANT_BITS
        bits."""
        return max(0, int(np.floor(SIGNIFICANT_BITS + np.log2(self.high) / 2)))

    @cached_property
    def x_bits(self) -> int:
        """Fractional bits of the copy of x that is scaled."""
        room = np.log2(P_FIELD / 4) - 0.1 - np.log2(self.width) / 2
        return min(int(np.floor(room)) - self.scale_bits, IN_BITS)


def rms_norm(arithmetic: Arithmetic, x: Share, public: NormRange, exact: bool = False) -> Share:
    """x / sqrt(mean(x²) + epsilon) at 2^-12. x: (..., width) at 2^-23, abs(x) < 2^18. 9 or 10 rounds, leaks
    nothing.

    exact: all elements are rounded exactly, so that the result is a function of x, but for the inverse root,
    one number a row. Some 12 rounds more.

    Relative error about 2e-4 (rounding of 1/rms and of the squares) plus the rounding of x to 2^-x_bits and
    of the result to 2^-12.
    """
    with arithmetic.operation("rms_norm"):
        shifts = [IN_BITS - public.x_bits, IN_BITS - public.square_bits]
        copy, squared = _rescales(arithmetic, x, shifts, exact)
        return _normalise(arithmetic, copy, squared, public, exact)


def layer_norm(arithmetic: Arithmetic, x: Share, public: NormRange, exact: bool = False) -> Share:
    """(x - mean) / sqrt(var + epsilon) at 2^-12; `public` is the range of the variance. One round more than
    rms_norm.

    width·x - Σx is exact and local; it is wrapped at twice the power of two below `width`, so that the row
    has the scale of x again up to the factor width/2^k, which the inverse root takes off.

    Prefer rms_norm where every writer of the stream can be centred when weights are prepared (subtract the
    mean over outputs from each matrix and bias that writes it): the mean is then 0 and both are equal.
    """
    with arithmetic.operation("layer_norm"):
        width, bits = public.width, _centring_bits(public)
        (narrow,) = _rescales(arithmetic, x, [IN_BITS - bits], exact)
        total = arithmetic.sum(narrow)[..., None]
        centred = arithmetic.sub(arithmetic.mul_public(narrow, width), np.broadcast_to(total, narrow.shape))
        copy, squared = _rescales(arithmetic, centred, _centred_shifts(public), exact)
        return _normalise(arithmetic, copy, squared, stretched(public), exact)


def _centring_bits(public: NormRange) -> int:
    """Fractional bits of x before width·x - Σx."""
    # abs(x - mean) <= sqrt(width·high); multiples of p that x's own mean adds cancel in the difference.
    room = np.log2(P_FIELD / 4) - 0.1 - np.log2(public.width) * 1.5 - np.log2(public.high) / 2
    return min(int(np.floor(room)), IN_BITS)


def _centred_shifts(public: NormRange) -> list[int]:
    """From width·x - Σx to the two copies of the row."""
    scaled, k = stretched(public), int(np.log2(public.width))
    return [_centring_bits(public) + k - target for target in (scaled.x_bits, scaled.square_bits)]


def stretched(public: NormRange) -> NormRange:
    """The range of (width/2^k)·(x - mean), k = floor(lg width), whose square is up to four times larger."""
    factor = (public.width / 2 ** int(np.log2(public.width))) ** 2
    return NormRange(public.width, public.low * factor, public.high * factor, public.epsilon * factor)


def _rescales(arithmetic: Arithmetic, x: Share, shifts: Sequence[int], exact: bool) -> list[Share]:
    """x / 2^s for each shift: rounded by chance, or exactly."""
    if exact:
        return exact_rescales(arithmetic, x, shifts)
    return arithmetic.wrap(x, [WrapOutput(shift) for shift in shifts])


def _normalise(arithmetic: Arithmetic, copy: Share, squared: Share, public: NormRange, exact: bool) -> Share:
    """copy / rms at 2^-12 from the two copies of the row, at 2^-x_bits and 2^-square_bits."""
    rows, total = arithmetic.exchange([MaskRows(copy), SumSquares(squared)])
    epsilon = round(public.epsilon * public.width * 4.0**public.square_bits)
    inverse, _ = evaluate(arithmetic, arithmetic.add_public(total, epsilon), public.inverse)
    product = arithmetic.scale_rows(rows, inverse)
    (result,) = _rescales(arithmetic, product, [_last_shift(public)], exact)
    return result


def _last_shift(public: NormRange) -> int:
    return public.x_bits + public.scale_bits - OUT_BITS


def rms_norm_cost(rows: int, public: NormRange, exact: bool = False) -> Cost:
    """Online cost for `rows` rows."""
    n = rows * public.width
    shifts = [IN_BITS - public.x_bits, IN_BITS - public.square_bits]
    return _rescales_cost(n, shifts, exact) + _normalise_cost(rows, public, exact)


def layer_norm_cost(rows: int, public: NormRange, exact: bool = False) -> Cost:
    """Online cost for `rows` rows."""
    n = rows * public.width
    return (
        _rescales_cost(n, [IN_BITS - _centring_bits(public)], exact)
        + _rescales_cost(n, _centred_shifts(public), exact)
        + _normalise_cost(rows, stretched(public), exact)
    )


def _normalise_cost(rows: int, public: NormRange, exact: bool) -> Cost:
    n = rows * public.width
    return (
        cost.exchange(cost.residues(n), cost.residues(n))
        + evaluate_cost(rows, public.inverse)
        + cost.exchange(cost.residues(rows))
        + _rescales_cost(n, [_last_shift(public)], exact)
    )


def _rescales_cost(n: int, shifts: Sequence[int], exact: bool) -> Cost:
    return exact_cost(n, shifts) if exact else cost.exchange(cost.bits(n))


def rms_norm_reference(x: Real, epsilon: float = 1e-5) -> Real:
    """x / sqrt(mean(x²) + epsilon) over the last axis, in float64."""
    return np.asarray(x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon))


def layer_norm_reference(x: Real, epsilon: float = 1e-5) -> Real:
    """(x - mean) / sqrt(var + epsilon) over the last axis, in float64."""
    return rms_norm_reference(x - x.mean(axis=-1, keepdims=True), epsilon)
