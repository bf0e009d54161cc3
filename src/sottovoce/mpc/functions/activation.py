"""Activations that are 0 far left, x far right and curved in between: SiLU and GELU (protocols.md 7.1).

z = mid·S(x) + right·x, S a spline look-up on x mod its domain and (mid, right) one region look-up on all of
x. Both thresholds are fuzzy by one region segment, so the domain is placed where either branch is good
enough.

Steps for x at 2^-in_bits, 23 unless said, 27 at most (5 rounds; the first can take other requests along):
1. wrap x to Z_2^19 at 2^-12;
2. spline and region look-ups in the same two messages;
3. two MUX: spline result and x itself, both at 2^-27;
4. rescale by 15 bits to 2^-12 (15 is the most for which rescaling is unbiased).

Budget: -63 <= x < 64 (asserted by the model): Z_2^19 holds [-64, 64), and the region segment that runs over
its end belongs to the right side; x at 2^-27 is then below 2^33, far below p/4. All in F_p: with the small
field the table would shrink by a third, but x·right no longer fits beside the spline.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sottovoce.mpc import cost
from sottovoce.mpc.arithmetic import Arithmetic
from sottovoce.mpc.cost import Cost
from sottovoce.mpc.field import Field as Share
from sottovoce.mpc.functions.fit import Real, spline_table
from sottovoce.mpc.requests import Lookup, Mux, RegionLookup, Request, SplineLookup, Wrap, WrapOutput
from sottovoce.mpc.tables import RegionTable, SplineTable

IN_BITS = 23
OUT_BITS = 12
_GRID = 12  # fractional bits of the index
_RANGE_BITS = 7  # x in [-64, 64)
_RESULT = OUT_BITS + 15
_COARSE = 6  # fractional bits of the region index: its table then has 8,192 entries and stays in the cache
_REGION_BITS = 7  # 128 segments, so a threshold is fuzzy by one unit


@dataclass(frozen=True)
class Activation:
    """Tables of one activation; `silu.TABLES` and `gelu.TABLES` are built once per process."""

    name: str
    spline: SplineTable
    regions: RegionTable


def build(
    name: str, f: Callable[[Real], Real], low: float, segment_bits: int, unit: float, degree: int
) -> Activation:
    """Tables for f on [low, low + 2^segment_bits·unit); the spline is good from low + unit on."""
    high = low + unit * 2**segment_bits
    remainder_bits = round(np.log2(unit)) + _GRID
    spline = spline_table(
        f,
        low=low,
        frac_bits=_GRID,
        segment_bits=segment_bits,
        remainder_bits=remainder_bits,
        degree=degree,
        result_bits=_RESULT,
    )
    return Activation(name, spline, _regions(low + unit, high))


def _regions(low: float, high: float) -> RegionTable:
    """Bit 0: mid, the whole segment lies in [low, high). Bit 1: right, it ends above high. Guard: one
    coarse unit."""
    ring_bits = _RANGE_BITS + _COARSE
    remainder_bits = ring_bits - _REGION_BITS
    starts = ((np.arange(1 << ring_bits) + (1 << (ring_bits - 1))) % (1 << ring_bits)).astype(np.float64)
    starts = (starts - (1 << (ring_bits - 1))) * 2.0**-_COARSE
    guard = 2.0**-_COARSE
    right = starts + 2.0 ** (remainder_bits - _COARSE) + guard > high
    mid = ~right & (starts - guard >= low)
    return RegionTable(_REGION_BITS, remainder_bits, 2, (mid + 2 * right).astype(np.uint8))


def activate(
    arithmetic: Arithmetic, x: Share, tables: Activation, in_bits: int = IN_BITS, ride: Sequence[Request] = ()
) -> tuple[Share, list[Any]]:
    """f(x) at 2^-12 for x at 2^-in_bits in [-63, 64), and the results of `ride`, which travels in the first
    exchange."""
    with arithmetic.operation(tables.name):
        arithmetic.require_range(x, -(63 << in_bits), 64 << in_bits)
        wrap = Wrap(x, (WrapOutput(in_bits - _GRID, 1 << (_GRID + _RANGE_BITS)),))
        (y,), *riders = arithmetic.exchange([wrap, *ride])
        inner = arithmetic.take_bits(y, 0, tables.spline.ring_bits)
        coarse = arithmetic.take_bits(y, _GRID - _COARSE, _GRID + _RANGE_BITS)
        lookups: list[Lookup] = [SplineLookup(inner, tables.spline), RegionLookup(coarse, tables.regions)]
        spline, bits = arithmetic.lookup(lookups)
        scaled = arithmetic.mul_public(x, 1 << (_RESULT - in_bits))
        middle, right = arithmetic.exchange([Mux(bits[..., 0], spline), Mux(bits[..., 1], scaled)])
        return arithmetic.rescale(arithmetic.add(middle, right), _RESULT - OUT_BITS), riders


def activate_cost(n: int, tables: Activation, ride: int = 0) -> Cost:
    """Online cost of `activate` on n elements with `ride` bytes of riders."""
    return (
        cost.exchange(cost.bits(n), ride)
        + cost.lookup((n, tables.spline), (n, tables.regions))
        + cost.exchange(cost.muxes(n), cost.muxes(n))
        + cost.exchange(cost.bits(n))
    )
