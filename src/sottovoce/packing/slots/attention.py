"""Keys, values and scores of one token at a time in slots (Cachemir, section 5; formulas of `Heads`).

Token p = c·t + r is token r of group c. Its key stands in group c, its feature f at slot f·t + r. The score
of head h stands at c·tH + h·t + r. With one group (context up to t) the scores need no mask and repeat with
period tH, values are stored like keys, and the weighted sum is one product. With several, values lie in d_h
lanes: block i of lane l holds dimension i of group l + i, so that a rotation of the scores by whole blocks
meets it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sottovoce.errors import UsageError
from sottovoce.packing.slots.arithmetic import Plain, SlotArithmetic, V, every
from sottovoce.packing.slots.heads import Heads


def block_mask(heads: Heads, block: int, value: float = 1.0) -> Plain:
    """One block of tH slots."""

    def make() -> np.ndarray:
        out = np.zeros(heads.n)
        out[block * heads.block : (block + 1) * heads.block] = value
        return out

    return make


def clean(heads: Heads, value: float = 1.0) -> Plain:
    """The feature slots."""
    return lambda: every(heads.n, heads.t, value=value)


def turn_right(ar: SlotArithmetic[V], x: V, by: int) -> V:
    """Rotated right by powers of two, whose keys `spread` needs anyway."""
    for bit in range(by.bit_length()):
        if by >> bit & 1:
            x = ar.rotate(x, -(1 << bit))
    return x


def append_key(ar: SlotArithmetic[V], heads: Heads, groups: list[V], key: V, position: int) -> None:
    """key: compact and free of junk. Up to log2 t rotations, no level."""
    turned = turn_right(ar, key, position % heads.t)
    if position // heads.t == len(groups):
        groups.append(turned)
    else:
        groups[-1] = ar.add(groups[-1], turned)


def scores(ar: SlotArithmetic[V], heads: Heads, groups: Sequence[V], query: V) -> V:
    """q·k for every token; query: compact, free of junk. One level with one group, two with several."""
    if len(groups) > heads.dim:
        raise UsageError(f"packing: scores of {len(groups)} groups do not fit {heads.n} slots")
    spread = ar.spread(query, heads.t)
    if len(groups) == 1:
        return ar.fold(ar.mul(spread, groups[0]), heads.block, heads.dim)
    found = [ar.fold(ar.mul(spread, group), heads.block, heads.dim) for group in groups]
    return ar.sum_plain([(s, block_mask(heads, c)) for c, s in enumerate(found)])


def append_value(ar: SlotArithmetic[V], heads: Heads, lanes: list[V | None], value: V, position: int) -> None:
    """value: compact and free of junk; `lanes` has d_h places. One level."""
    c, turned = position // heads.t, turn_right(ar, value, position % heads.t)
    for block in range(heads.dim):
        part = ar.mul_plain(turned, block_mask(heads, block))
        lane, place = lanes[(c - block) % heads.dim], (c - block) % heads.dim
        lanes[place] = part if lane is None else ar.add(lane, part)


def mix_group(ar: SlotArithmetic[V], heads: Heads, probabilities: V, values: V) -> V:
    """Σ p·v with one group: probabilities with period tH, values stored like keys. One level; junk between
    features."""
    return ar.fold(ar.mul(values, probabilities), 1, heads.t)


def mix_lanes(ar: SlotArithmetic[V], heads: Heads, probabilities: V, lanes: Sequence[V | None]) -> V:
    """Σ p·v with lanes: one relinearisation for all of them. One level; junk between features."""
    used = [k for k, lane in enumerate(lanes) if lane is not None]
    turned = ar.rotate_many(probabilities, [k * heads.block for k in used])
    terms = []
    for k, p in zip(used, turned, strict=True):
        lane = lanes[k]
        assert lane is not None
        terms.append((lane, p))
    return ar.fold(ar.sum_products(terms), 1, heads.t)


def sum_tokens(ar: SlotArithmetic[V], heads: Heads, x: V, groups: int, scale: float = 1.0) -> V:
    """scale·Σ over tokens, of every head, in all slots of the head. One level: the sum is valid at one slot
    of a head before the mask."""
    if groups > 1:
        x = ar.fold(x, heads.block, heads.dim)
    x = ar.fold(x, 1, heads.t)
    return ar.spread(ar.mul_plain(x, clean(heads, scale)), heads.t)


def empty(heads: Heads, length: int, value: float, single: bool) -> np.ndarray:
    """`value` at the scores of positions from `length` on, 0 at filled ones. single: one group, periodic."""
    c = np.arange(heads.n) // heads.block
    position = (0 * c if single else c) * heads.t + np.arange(heads.n) % heads.t
    return np.where(position >= length, value, 0.0)
