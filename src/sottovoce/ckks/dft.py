"""The transform between slots and coefficients, in a few sparse factors.

A polynomial of 2n real coefficients m (in X^(N/2n), for n of the N/2 slots) has the slots z = U·c with c =
m[:n] + i·m[n:] and U[j, k] = ζ^(5^j·k), ζ = exp(iπ/2n). U is a product of lg n layers of butterflies behind a
bit reversal. Slots are only needed as coefficients for something pointwise, so the reversal is left out on
both sides: here the coefficients stand in bit-reversed order in the slots.

Neighbouring layers are merged, r layers to a map of 2^(r+1) − 1 diagonals (2^r for those that wrap around),
one level each. All but the map with the longest layers have diagonals of a short period.

Source: Cheon et al., EUROCRYPT 2018 (the layers), Chen, Chillotti and Song, EUROCRYPT 2019 (merged factors).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sottovoce.ckks.linear_map import LinearMap, Slots, compose
from sottovoce.errors import ParameterError


def _layer(n: int, length: int, inverse: bool) -> LinearMap:
    """Butterflies between slots that are length/2 apart: (u, v) -> (u + w·v, u − w·v), or back."""
    half = length // 2
    powers = [1]
    for _ in range(half - 1):
        powers.append(powers[-1] * 5 % (4 * length))
    w = np.exp(2j * np.pi * np.array(powers) / (4 * length))
    zeros, ones = np.zeros(half), np.ones(half)
    if inverse:
        # u = (x + y)/2 and v = (x − y)/2w for x above y.
        stay, up, down = (ones / 2, -w.conj() / 2), (ones / 2, zeros), (zeros, w.conj() / 2)
    else:
        stay, up, down = (ones, -w), (w, zeros), (zeros, ones)
    diagonals = {0: np.concatenate(stay).astype(np.complex128)}
    for shift, values in ((half, up), (n - half, down)):
        joined = np.concatenate(values).astype(np.complex128)
        diagonals[shift] = diagonals[shift] + joined if shift in diagonals else joined
    return LinearMap(n, diagonals)


def sizes(layers: int, factors: int) -> list[int]:
    """How many layers each factor merges, those of the longest layers first: as equal as can be."""
    if not 1 <= factors <= layers:
        raise ParameterError(f"{layers} layers do not make {factors} factors")
    return [layers // factors + (i < layers % factors) for i in range(factors)]


def slots_to_coefficients(n: int, factors: int) -> list[LinearMap]:
    """Maps whose product, the first applied first, turns coefficients in bit-reversed order into slots."""
    layers = [_layer(n, 2 << i, inverse=False) for i in range(n.bit_length() - 1)]
    return _merged(layers, sizes(len(layers), factors)[::-1])


def coefficients_to_slots(n: int, factors: int) -> list[LinearMap]:
    """The inverse: slots to coefficients in bit-reversed order."""
    layers = [_layer(n, 2 << i, inverse=True) for i in reversed(range(n.bit_length() - 1))]
    return _merged(layers, sizes(len(layers), factors))


def _merged(layers: Sequence[LinearMap], groups: Sequence[int]) -> list[LinearMap]:
    ends = np.cumsum(groups)
    return [compose(layers[end - size : end]) for size, end in zip(groups, ends, strict=True)]


def side_by_side(maps: Sequence[LinearMap], factor: complex = 1.0) -> list[LinearMap]:
    """`coefficients_to_slots` onto 2n slots: c/2 in the first n, −i·c/2 in the others, times `factor`.

    The input has period n. Adding the conjugate leaves the real parts beside the imaginary ones.
    """
    n = maps[0].slots
    halves = np.repeat(np.array([0.5, -0.5j]), n) * factor
    return [*(m.widened(2 * n) for m in maps[:-1]), maps[-1].widened(2 * n).scaled_rows(halves)]


def joined(maps: Sequence[LinearMap]) -> list[LinearMap]:
    """`slots_to_coefficients` from 2n slots, real parts beside imaginary ones.

    The result plus its rotation by n is U·(re + i·im), with period n: the maps act alike on both halves, so
    the halves may as well be added at the end, where it is cheapest.
    """
    n = maps[0].slots
    halves: Slots = np.repeat(np.array([1, 1j]), n)
    wide = [m.widened(2 * n) for m in maps]
    return [wide[0].scaled_columns(halves), *wide[1:]]
