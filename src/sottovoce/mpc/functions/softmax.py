"""Softmax with a static shift per head instead of a maximum (protocols.md 7.2 and 7.3).

Scores are in base 2 (log2(e)/√d is folded into q): p_j = 2^(s_j - c) / Σ 2^(s_i - c), c the calibrated
maximum of the head plus a margin, known to the server only. y = c - s.

1. wrap y to Z_2^20 at 2^-12 (range -64 to 192; `range_bits` 9 doubles it for models with wilder scores);
2. 2^-y = 2^-a·2^-φ by a rank-one look-up on y mod 64 (1-of-16, a segment of 4), and two region bits on all
   of y: `live` for -2 <= y < 56 and `above` below that;
3. MUX with `live`; `above` counts as e = 4, so that a score far above the shift does not vanish by wrapping;
4. rescale to 2^-28;
5. mask the row e, and in the same exchange begin 1/Σe (windows, 4.8);
6. open the scalar;
7. rescale to 2^-14.

Budget: 2^-a at 2^-26 times 2^-φ at 2^-13 is at most 2^41 for y >= -2 (below p/2); e <= 2^30; Σe + 1 <
n·2^30 + n, so n <= 4,095 columns; e·(2^41/Σe) <= 2^41·(1 + 2e-4). 1/Σe keeps 41 - lg Σe bits: 2^-8 relative
at Σe = 64·2^28, ten times that of any row measured. One unit is added to Σe, because a row of zeros has no
inverse.

Accuracy: e to 2^-9 relative at y = 4 (the last place of 2^-y0 and of y), 2^-29 absolute; p to 2^-14.
Only live columns are exponentiated. Leakage: none; which columns are live is public.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sottovoce.mpc import cost, field
from sottovoce.mpc.arithmetic import Arithmetic, IntArray
from sottovoce.mpc.cost import Cost
from sottovoce.mpc.field import Field as Share
from sottovoce.mpc.functions.fit import Real
from sottovoce.mpc.functions.inverse_power import InversePower, covering, evaluate, evaluate_cost
from sottovoce.mpc.requests import (
    MaskRows,
    Mux,
    RegionLookup,
    SplineLookup,
    ToArithmetic,
    WrapOutput,
)
from sottovoce.mpc.tables import RegionTable, SplineTable

IN_BITS = 24
OUT_BITS = 14
E_BITS = 28
_GRID = 12
RANGE_BITS = 8  # y spans 256
_LOWEST_Y = -64
_INNER_BITS = 6  # the table spans 64
_FACTOR_BITS = 13
_PRODUCT_BITS = 39  # of 2^-a · 2^-φ
_COARSE = 6
_SATURATED = 2  # lg of the e that stands for everything above the shift by more than 2
_INVERSE_BITS = 41
_WINDOW = 3  # bits of a window of 1/Σe: one round less than with 2, for 2.5 KB more a row


@lru_cache(maxsize=1)
def exp_table() -> SplineTable:
    """2^-y on y in [-4, 60) mod 64 as entry(a)·factor(φ); the start 60 + t is taken as -4 + t."""
    remainder_bits = _INNER_BITS + _GRID - 4
    length, u = 1 << (_INNER_BITS + _GRID), 1 << remainder_bits
    a = np.arange(length)
    start = np.where(a >= length - u, a - length, a) * 2.0**-_GRID
    entries = np.rint(2.0 ** (_PRODUCT_BITS - _FACTOR_BITS - start))
    factors = np.rint(2.0 ** (_FACTOR_BITS - np.arange(u) * 2.0**-_GRID))
    return SplineTable(
        4,
        field.P_FIELD,
        field.from_signed(entries[:, None], field.P_FIELD),
        factors[None].astype(np.uint64),
        False,
    )


@lru_cache(maxsize=4)
def region_table(range_bits: int = RANGE_BITS) -> RegionTable:
    """Bit 0, live: the segment (2 long) starts in [-2, 54]. Bit 1, above: it starts lower. Guard: one
    unit."""
    ring_bits = range_bits + _COARSE
    region_bits = range_bits - 1  # segments of 2
    remainder_bits = ring_bits - region_bits
    a = np.arange(1 << ring_bits)
    low = _LOWEST_Y << _COARSE
    start = (low + (a - low) % (1 << ring_bits)) * 2.0**-_COARSE
    guard = 2.0**-_COARSE
    above = start - guard < -2
    live = ~above & (start + guard <= 54)
    return RegionTable(region_bits, remainder_bits, 2, (live + 2 * above).astype(np.uint8))


def inverse_sum(columns: int) -> InversePower:
    """Σe + 1 -> 2^41/(Σe + 1) for up to `columns` terms."""
    return covering(1.0, 2.0**_INVERSE_BITS, 1.0, (columns + 0.5) * 2.0 ** (E_BITS + _SATURATED), _WINDOW)


def softmax(
    arithmetic: Arithmetic,
    scores: Share,
    shift: IntArray | None,
    live: NDArray[np.bool_] | None = None,
    in_bits: int = IN_BITS,
    range_bits: int = RANGE_BITS,
) -> Share:
    """Probabilities at 2^-14 over the last axis. 15 rounds at 64 to 511 columns.

    scores: (..., n) at 2^-in_bits, base 2; 66 - 2^range_bits < score - shift < 62. shift: the server's
    constant c at 2^-in_bits, int64, broadcasting against (...) (None at the client). live: public (..., n),
    broadcasting; dead columns give exactly 0, every row has a live one.
    """
    shape = arithmetic.shape(scores)
    mask = np.broadcast_to(True if live is None else live, shape)
    with arithmetic.operation("softmax"):
        column = None if shift is None else np.asarray(shift, dtype=np.int64)[..., None]
        y = arithmetic.add_server(arithmetic.neg(scores), column)
        e = _scatter(arithmetic, exponentials(arithmetic, y[..., mask], in_bits, range_bits), mask)
        total = arithmetic.add_public(arithmetic.sum(e), 1)
        inverse, [rows] = evaluate(arithmetic, total, inverse_sum(shape[-1]), [MaskRows(e)])
        product = arithmetic.scale_rows(rows, inverse)
        p = arithmetic.rescale(product, _INVERSE_BITS - OUT_BITS, signed=False)
        # Rescaling may round a zero to one unit; a column that does not exist must not.
        return np.where(mask, p, np.uint64(0))


def exponentials(
    arithmetic: Arithmetic, y: Share, in_bits: int = IN_BITS, range_bits: int = RANGE_BITS
) -> Share:
    """2^-y at 2^-28 for y at 2^-in_bits, -62 < y < 2^range_bits - 66, any shape.

    0 from 56 on, 4 below -2. 5 rounds.
    """
    arithmetic.require_range(y, -(62 << in_bits), ((1 << range_bits) - 66) << in_bits)
    ring_bits = range_bits + _GRID
    (index,) = arithmetic.wrap(y, [WrapOutput(in_bits - _GRID, 1 << ring_bits)])
    inner = arithmetic.take_bits(index, 0, _INNER_BITS + _GRID)
    coarse = arithmetic.take_bits(index, _GRID - _COARSE, ring_bits)
    value, bits = arithmetic.lookup(
        [SplineLookup(inner, exp_table()), RegionLookup(coarse, region_table(range_bits))]
    )
    kept, saturated = arithmetic.exchange([Mux(bits[..., 0], value), ToArithmetic(bits[..., 1])])
    four = arithmetic.mul_public(saturated, 1 << (_PRODUCT_BITS + _SATURATED))
    return arithmetic.rescale(arithmetic.add(kept, four), _PRODUCT_BITS - E_BITS, signed=False)


def _scatter(arithmetic: Arithmetic, values: Share, mask: NDArray[np.bool_]) -> Share:
    """Live columns (..., count) back to their places, zero elsewhere."""
    full = np.zeros(values.shape[: arithmetic.lead] + mask.shape, dtype=np.uint64)
    full[..., mask] = values
    return full


def exponentials_cost(n: int, range_bits: int = RANGE_BITS) -> Cost:
    return (
        cost.exchange(cost.bits(n))
        + cost.lookup((n, exp_table()), (n, region_table(range_bits)))
        + cost.exchange(cost.muxes(n), cost.bits(n))
        + cost.exchange(cost.bits(n))
    )


def softmax_cost(rows: int, columns: int, live: int | None = None, range_bits: int = RANGE_BITS) -> Cost:
    """Online cost of rows × columns of which `live` exist."""
    n = rows * columns
    return (
        exponentials_cost(n if live is None else live, range_bits)
        + evaluate_cost(rows, inverse_sum(columns), ride=cost.residues(n))
        + cost.exchange(cost.residues(rows))
        + cost.exchange(cost.bits(n))
    )


def softmax_reference(scores: Real, live: NDArray[np.bool_] | None = None) -> Real:
    """Base-2 softmax over the last axis, in float64."""
    masked = scores if live is None else np.where(live, scores, -np.inf)
    e = 2.0 ** (masked - masked.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))
