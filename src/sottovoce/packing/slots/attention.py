"""Keys, values and scores of one token at a time in slots (Cachemir, section 5; formulas of `Heads`).

Private token p = g·t + r is token r of group g. Its scores stand in every block b ≡ g mod C at b·tH + h·t + r
(`Blocks`). Keys lie in C lanes: block b of lane m holds dimension (b + m) mod d_h of group b mod C, so that
the products of all lanes with the query turned by m blocks, folded by steps of C blocks, are the scores of
all groups, without a mask. Values lie in one ciphertext for each group, feature f of token r at slot f·t + r.

Public tokens are plaintexts: lane m of a score ciphertext holds dimension (b + m) mod d_h of the group in
block b, one lane for each dimension, by baby and giant steps. Depth one, no relinearisation, and the same
rotations for any number of tokens up to n/H.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce

import numpy as np

from sottovoce.packing.slots.arithmetic import (
    Plain,
    SlotArithmetic,
    V,
    Vector,
    baby_steps,
    every,
    giant_steps,
)
from sottovoce.packing.slots.blocks import Blocks
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


def key_lanes(ar: SlotArithmetic[V], blocks: Blocks, key: V, position: int) -> list[V]:
    """What private token `position` adds to each of C lanes. key: compact and free of junk. One level, none
    with one class."""
    heads = blocks.heads
    turned = turn_right(ar, key, position % heads.t)
    if blocks.classes == 1:
        return [turned]
    mask = blocks.residue(position // heads.t)
    return [ar.mul_plain(x, mask) for x in _lanes(ar, blocks, turned)]


def plain_lanes(blocks: Blocks, key: Vector, position: int) -> list[Vector]:
    """The lanes of a key that is a plaintext: `key_lanes` in numbers."""
    heads, turned = blocks.heads, np.roll(key, position % blocks.heads.t)
    mask = blocks.residue(position // heads.t)()
    return [np.roll(turned, -m * heads.block) * mask for m in range(blocks.classes)]


def append(ar: SlotArithmetic[V], held: list[V], added: Sequence[V]) -> list[V]:
    """Each lane with what a token adds."""
    return [ar.add(x, y) for x, y in zip(held, added, strict=True)] if held else list(added)


def append_value(ar: SlotArithmetic[V], blocks: Blocks, groups: list[V], value: V, position: int) -> list[V]:
    """value: compact and free of junk. No level."""
    group, turned = position // blocks.heads.t, turn_right(ar, value, position % blocks.heads.t)
    if group == len(groups):
        return [*groups, turned]
    return [*groups[:-1], ar.add(groups[-1], turned)]


def scores(
    ar: SlotArithmetic[V],
    blocks: Blocks,
    query: V,
    lanes: Sequence[V],
    public: Sequence[Sequence[Plain]] = (),
) -> list[V]:
    """q·k for every token, by ciphertext; query: compact, free of junk; public: `public_keys` of each. One
    level."""
    heads, c = blocks.heads, blocks.classes
    count = max(baby_steps(heads.dim) if public else 1, c)
    turned = ar.rotate_many(ar.spread(query, heads.t), [m * heads.block for m in range(count)])
    products = ar.sum_products(list(zip(lanes, turned, strict=False)))
    out = [ar.fold(products, c * heads.block, blocks.copies)]
    for z, plaintexts in enumerate(public):
        found = giant_steps(ar, turned[: baby_steps(heads.dim)], plaintexts, heads.block)
        if z == 0:
            out[0] = ar.add(out[0], found)
        else:
            out.append(found)
    return out


def mix(
    ar: SlotArithmetic[V],
    blocks: Blocks,
    probabilities: Sequence[V],
    values: Sequence[V],
    public: Sequence[Sequence[Plain]] = (),
) -> V:
    """Σ p·v over all tokens; public: `public_values` of each ciphertext. Two levels, one with one class; junk
    between features."""
    heads, first = blocks.heads, probabilities[0]
    terms = [(value, _everywhere(ar, blocks, first, g)) for g, value in enumerate(values)]
    total = ar.sum_products(terms)
    steps = [b * heads.block for b in range(baby_steps(heads.dim))]
    for p, plaintexts in zip(probabilities, public, strict=bool(public)):
        total = ar.add(total, giant_steps(ar, ar.rotate_many(p, steps), plaintexts, heads.block))
    return ar.fold(total, 1, heads.t)


def sum_tokens(ar: SlotArithmetic[V], blocks: Blocks, xs: Sequence[V], scale: float | Vector = 1.0) -> V:
    """scale·Σ over tokens, of every head, in all slots of the head. One level: the sum is valid at one slot
    of a head before the mask, which also counts a private token once. scale: (H,) or one for all heads."""
    heads, c = blocks.heads, blocks.classes
    first = xs[0] if c == 1 else ar.fold(xs[0], c * heads.block, blocks.copies)
    terms = [(ar.fold(first, 1, heads.t), blocks.weights(scale))]
    if len(xs) > 1:
        rest = ar.fold(reduce(ar.add, xs[1:]), c * heads.block, blocks.copies)
        terms.append((ar.fold(rest, 1, heads.t), lambda: heads.by_head(scale) * every(heads.n, heads.t)))
    return ar.fold(ar.spread(ar.sum_plain(terms), heads.t), heads.block, c)


def public_keys(blocks: Blocks, rows: Plain, ciphertext: int) -> list[Plain]:
    """Lanes of a score ciphertext from keys (d_h, H, tokens), tokens a multiple of t."""
    b = np.arange(blocks.heads.dim)
    return [
        partial(_lane, blocks, rows, ciphertext, m, b, (b + m) % blocks.heads.dim)
        for m in range(blocks.heads.dim)
    ]


def public_values(blocks: Blocks, rows: Plain, ciphertext: int) -> list[Plain]:
    """Likewise for `mix`: block i of lane k holds dimension i of the group in block i + k."""
    b = np.arange(blocks.heads.dim)
    return [
        partial(_lane, blocks, rows, ciphertext, k, (b + k) % blocks.heads.dim, b)
        for k in range(blocks.heads.dim)
    ]


def _lane(blocks: Blocks, rows: Plain, ciphertext: int, m: int, block: Vector, dim: Vector) -> Vector:
    """Block j: dimension dim[j] of the public group that stands in block[j]; for giant step m."""
    heads, values = blocks.heads, rows()
    group = blocks.groups(ciphertext)[block]
    split = values.reshape(heads.dim, heads.count, -1, heads.t)
    found = split[dim, :, np.maximum(group, 0), :] * (group >= 0)[:, None, None]
    babies = baby_steps(heads.dim)
    return np.asarray(np.roll(found.reshape(-1), (m // babies) * babies * heads.block))


def _lanes(ar: SlotArithmetic[V], blocks: Blocks, x: V) -> list[V]:
    """x turned by 0 … C − 1 blocks."""
    return ar.rotate_many(x, [m * blocks.heads.block for m in range(blocks.classes)])


def _everywhere(ar: SlotArithmetic[V], blocks: Blocks, p: V, group: int) -> V:
    """The probabilities of a private group with period tH. One level, none with one class."""
    if blocks.classes == 1:
        return p
    return ar.fold(ar.mul_plain(p, blocks.residue(group)), blocks.heads.block, blocks.classes)
