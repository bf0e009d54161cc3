"""Attention of a chunk of private tokens to its group, ciphertext by ciphertext, and to public tokens.

Scores are taken by distance: δ between a token and one before it. Value g of the scores holds distances g·d_h
… g·d_h + d_h − 1, one in each block of tH slots: block c, head h, sub-slot s is the score of token s for
token s − δ, δ = g·d_h + c. Keys and values are brought there as d_h *lanes*: block i of a lane holds
dimension i of the keys at distance g·d_h + (i ± m), so that d_h products with rotations by whole blocks give
all scores, or all sums, of d_h distances for all tokens and heads at once. A score whose token does not exist
is zero: the masks of the lanes see to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from sottovoce.packing.slots.arithmetic import SlotArithmetic, V, Vector
from sottovoce.packing.slots.chunk import Chunk, products, public_values, turns


@dataclass(frozen=True)
class PlainKeys:
    """What the server knows of the keys: `group` (T, H, d_h) at their sub-slots, zero where they are
    encrypted; `shifts` (T, H, d_h): what a row subtracts from every key it meets. Made when needed, like
    plaintexts."""

    group: Vector
    shifts: Vector


def turned_queries(ar: SlotArithmetic[V], chunk: Chunk, query: V) -> list[V]:
    """Rotations by whole blocks, for `scores` and `public_scores`."""
    return turns(ar, query, chunk.heads.block, chunk.heads.dim)


def scores(
    ar: SlotArithmetic[V],
    chunk: Chunk,
    queries: Sequence[V],
    keys: V,
    known: Callable[[], PlainKeys],
    scale: float = 1.0,
) -> list[V]:
    """scale·q·(k − shift) for every token and every one up to it in its group: `chunk.own` values.

    keys: the whole group, encrypted tokens only; spends two of its levels, one of the queries'. For each
    value d_h² plaintexts, about 2.5·d_h rotations, d_h products, one relinearisation.
    """
    heads, found = chunk.heads, []
    dim = heads.dim
    for g in range(chunk.own):
        if g:
            keys = ar.rotate(keys, -dim)
        shifted = turns(ar, keys, -1, min(dim, chunk.distances - g * dim))
        terms = []
        for m in range(dim):
            masks = [partial(_key_mask, chunk, g, c, m, scale) for c in range(len(shifted))]
            lane = ar.sum_plain(list(zip(shifted, masks, strict=True)))
            lane = ar.add_plain(lane, partial(_key_plain, chunk, g, m, known, scale))
            terms.append((queries[m], turn_left(ar, lane, m, heads.block)))
        found.append(ar.sum_products(terms))
    return found


def public_scores(
    ar: SlotArithmetic[V],
    chunk: Chunk,
    queries: Sequence[V],
    keys: Vector,
    known: Callable[[], PlainKeys],
    scale: float = 1.0,
) -> list[V]:
    """scale·q·(k − shift) for public tokens outside the group: a value for d_h tokens, d_h plaintexts each,
    one level. keys (tokens, H, d_h); of `known` only the shifts matter."""
    dim, found = chunk.heads.dim, []
    for first in range(0, len(keys), dim):
        block = keys[first : first + dim]
        plains = [partial(_public_plain, chunk, block, known, m, scale) for m in range(dim)]
        found.append(ar.sum_plain(list(zip(queries, plains, strict=True))))
    return found


def exists(chunk: Chunk, public: int = 0) -> Vector:
    """(values, d_h, count): whether value v, block c, token i is the score of a token; those of the group
    first, then those of `public` tokens."""
    dim = chunk.heads.dim
    own = np.arange(chunk.own * dim).reshape(-1, dim, 1) <= chunk.start + np.arange(chunk.count)
    others = np.arange(-(-public // dim) * dim).reshape(-1, dim, 1) < public
    return np.concatenate([own, np.broadcast_to(others, (*others.shape[:2], chunk.count))])


def offsets(chunk: Chunk, valid: Vector, pack: int, rows: Vector, nothing: float) -> Vector:
    """What is added to ciphertext `pack` of the scores: rows (H, count) where `exists`, else `nothing`."""
    heads, f = chunk.heads, chunk.windows
    places = np.full((heads.dim, heads.count, f, chunk.window), nothing)
    for a, there in enumerate(valid[pack * f : (pack + 1) * f]):
        filled = np.where(there[:, None, :], rows[None], nothing)
        places[:, :, a, : chunk.count] = filled
    return chunk.slots(places.reshape(heads.width, f, chunk.window))


def row_sums(ar: SlotArithmetic[V], chunk: Chunk, packed: Sequence[V], scale: float = 1.0) -> V:
    """scale·Σ over the scores of a token and head, at all its slots; 0 at sub-slots without a token. One
    level."""
    heads, total = chunk.heads, packed[0]
    for x in packed[1:]:
        total = ar.add(total, x)
    total = ar.fold(ar.fold(total, heads.block, heads.dim), chunk.window, chunk.windows)
    return ar.fold(ar.mul_plain(total, lambda: chunk.live(scale)), -chunk.window, chunk.windows)


def value_lanes(ar: SlotArithmetic[V], chunk: Chunk, values: V, scale: float = 1.0) -> list[V]:
    """The group's values for `mix`: d_h·min(d_h, distances) plaintexts, as many rotations less one, one
    level."""
    dim = chunk.heads.dim
    shifted = turns(ar, values, -1, min(dim, chunk.distances))
    return [
        ar.sum_plain([(x, partial(_block, chunk, (c - m) % dim, scale)) for c, x in enumerate(shifted)])
        for m in range(dim)
    ]


def mix(ar: SlotArithmetic[V], chunk: Chunk, probabilities: Sequence[V], lanes: Sequence[V]) -> V:
    """Σ p·v over the group, from `chunk.own` values of probabilities and the lanes of `value_lanes`. Junk at
    sub-slots without a token. One level, one relinearisation."""
    terms: list[tuple[V, V]] = []
    for g, p in enumerate(probabilities):
        if g:
            lanes = [ar.rotate(lane, -chunk.heads.dim) for lane in lanes]
        terms += zip(turns(ar, p, chunk.heads.block, chunk.heads.dim), lanes, strict=True)
    return ar.sum_products(terms)


def mix_public(
    ar: SlotArithmetic[V], chunk: Chunk, probabilities: Sequence[V], values: Vector, scale: float = 1.0
) -> V:
    """scale·Σ p·v over public tokens, values (tokens, H, d_h). One level, 2·√d_h rotations a value."""
    plains = [public_values(chunk.heads, values, c, scale) for c in range(len(probabilities))]
    return products(ar, probabilities, [plains], chunk.heads.block)[0]


def turn_left(ar: SlotArithmetic[V], x: V, times: int, step: int) -> V:
    """Rotated by times·step in powers of two, whose keys sums over heads need anyway."""
    for bit in range(times.bit_length()):
        if times >> bit & 1:
            x = ar.rotate(x, step << bit)
    return x


def _block(chunk: Chunk, block: int, value: float) -> Vector:
    out = np.zeros((chunk.heads.dim, chunk.heads.block))
    out[block] = value
    return out.reshape(-1)


def _reached(chunk: Chunk, g: int, c: int) -> Vector:
    """(T,): the chunk's sub-slots that have a token g·d_h + c before them in the group."""
    s = np.arange(chunk.heads.t)
    return (s >= max(chunk.start, g * chunk.heads.dim + c)) & (s < chunk.start + chunk.count)


def _key_mask(chunk: Chunk, g: int, c: int, m: int, scale: float) -> Vector:
    heads = chunk.heads
    out = np.zeros((heads.dim, heads.count, heads.t))
    out[(c + m) % heads.dim] = scale * _reached(chunk, g, c)
    return out.reshape(-1)


def _key_plain(chunk: Chunk, g: int, m: int, known: Callable[[], PlainKeys], scale: float) -> Vector:
    """Public keys of the group less the shifts, where lane m of value g has keys."""
    heads, plain = chunk.heads, known()
    out = np.zeros((heads.dim, heads.count, heads.t))
    for i in range(heads.dim):
        c = (i - m) % heads.dim
        s = np.flatnonzero(_reached(chunk, g, c))
        if len(s):
            keys = plain.group[s - g * heads.dim - c, :, i] - plain.shifts[s, :, i]
            out[i][:, s] = scale * keys.T
    return out.reshape(-1)


def _public_plain(chunk: Chunk, keys: Vector, known: Callable[[], PlainKeys], m: int, scale: float) -> Vector:
    heads, shifts = chunk.heads, known().shifts
    out = np.zeros((heads.dim, heads.count, heads.t))
    s = np.arange(chunk.start, chunk.start + chunk.count)
    for o in range(len(keys)):
        i = (o + m) % heads.dim
        out[o][:, s] = scale * (keys[o, :, i][:, None] - shifts[s, :, i].T)
    return out.reshape(-1)
