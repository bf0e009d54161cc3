"""Attention of a chunk of private tokens to its group, ciphertext by ciphertext, and to public tokens.

Scores are taken by distance: δ between a token and one before it. Value g of the scores holds distances g·d_h
… g·d_h + d_h − 1, one in each block of tH slots: block c, head h, sub-slot s is the score of token s for
token s − δ, δ = g·d_h + c. Keys and values are brought there as d_h *lanes*: block i of a lane holds
dimension i of the keys at distance g·d_h + (i ± m), so that d_h products with rotations by whole blocks give
all scores, or all sums, of d_h distances for all tokens and heads at once. A score whose token does not exist
is zero: the masks of the lanes see to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    whole: bool = False,
) -> list[V]:
    """scale·q·(k − shift) for every token and every one up to it in its group, `chunk.own` values; `whole`:
    for every token of another, full group, `all_distances` values.

    keys: the whole group, encrypted tokens only; spends two of its levels, one of the queries'. For each
    value d_h² plaintexts (twice as many of a full group), about 2.5·d_h rotations, d_h products, one
    relinearisation.
    """
    heads, found = chunk.heads, []
    for g, sources in enumerate(_turned(ar, chunk, keys, whole)):
        terms = []
        for m in range(heads.dim):
            masks = [partial(_key_mask, chunk, at, m, scale) for at, _ in sources]
            lane = ar.sum_plain([(x, mask) for (_, x), mask in zip(sources, masks, strict=True)])
            lane = ar.add_plain(lane, partial(_key_plain, chunk, g, m, known, scale, whole))
            terms.append((queries[m], turn_left(ar, lane, m, heads.block)))
        found.append(ar.sum_products(terms))
    return found


def all_distances(chunk: Chunk) -> int:
    """Values of scores that hold a full group."""
    return -(-chunk.heads.t // chunk.heads.dim)


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


def exists(chunk: Chunk, public: int = 0, groups: int = 0) -> Vector:
    """(values, d_h, count): whether value v, block c, token i is the score of a token: first those of its
    group, then of as many full groups, then of `public` tokens."""
    dim = chunk.heads.dim
    own = np.arange(chunk.own * dim).reshape(-1, dim, 1) <= chunk.start + np.arange(chunk.count)
    full = np.arange(all_distances(chunk) * dim).reshape(-1, dim, 1) < chunk.heads.t
    others = np.arange(-(-public // dim) * dim).reshape(-1, dim, 1) < public
    outside = np.concatenate([*[full] * groups, others])
    return np.concatenate([own, np.broadcast_to(outside, (*outside.shape[:2], chunk.count))])


def offsets(chunk: Chunk, valid: Vector, pack: int, rows: Vector, nothing: float) -> Vector:
    """What is added to ciphertext `pack` of the scores: rows (H, count) where `exists`, else `nothing`."""
    heads, f = chunk.heads, chunk.windows
    places = np.full((heads.dim, heads.count, f, chunk.window), nothing)
    for a, there in enumerate(valid[pack * f : (pack + 1) * f]):
        filled = np.where(there[:, None, :], rows[None], nothing)
        places[:, :, a, : chunk.count] = filled
    return chunk.slots(places.reshape(heads.width, f, chunk.window))


def row_sums(ar: SlotArithmetic[V], chunk: Chunk, packed: Sequence[V], scale: float | Vector = 1.0) -> V:
    """scale·Σ over the scores of a token and head, at all its slots; 0 at sub-slots without a token. One
    level. scale: (H, count) or one for all."""
    heads, total = chunk.heads, packed[0]
    for x in packed[1:]:
        total = ar.add(total, x)
    total = ar.fold(ar.fold(total, heads.block, heads.dim), chunk.window, chunk.windows)
    rows = np.broadcast_to(scale, (heads.count, chunk.count))
    mask = partial(chunk.tokens, np.tile(rows.T, heads.dim))
    return ar.fold(ar.mul_plain(total, mask), -chunk.window, chunk.windows)


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


def mix_group(
    ar: SlotArithmetic[V], chunk: Chunk, probabilities: Sequence[V], values: V, scale: float = 1.0
) -> V:
    """scale·Σ p·v over another, full group. Two levels of values, one of probabilities; 2·d_h² plaintexts to
    d_h distances."""
    heads, terms = chunk.heads, list[tuple[V, V]]()
    for p, sources in zip(probabilities, _turned(ar, chunk, values, True), strict=True):
        for m, turned in enumerate(turns(ar, p, heads.block, heads.dim)):
            masks = [partial(_value_mask, chunk, at, m, scale) for at, _ in sources]
            lane = ar.sum_plain([(x, mask) for (_, x), mask in zip(sources, masks, strict=True)])
            terms.append((turned, lane))
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


@dataclass(frozen=True)
class _At:
    """A group turned right by a distance. over: and left by t, which serves the sub-slots below the distance
    with the group's last tokens."""

    distance: int
    over: bool = False

    def slots(self, t: int) -> Vector:
        """(T,) bool: the sub-slots that it serves."""
        s = np.arange(t)
        return s < self.distance if self.over else s >= self.distance


def _turned(ar: SlotArithmetic[V], chunk: Chunk, group: V, whole: bool) -> Iterator[list[tuple[_At, V]]]:
    """For each value of scores, the group at its distances. One rotation to a distance, two of a full
    group."""
    heads, reach = chunk.heads, chunk.heads.t if whole else chunk.distances
    for first in range(0, reach, heads.dim):
        if first:
            group = ar.rotate(group, -heads.dim)
        near = turns(ar, group, -1, min(heads.dim, reach - first))
        out = [(_At(first + c), x) for c, x in enumerate(near)]
        if whole:
            out += [(_At(first + c, True), ar.rotate(x, heads.t)) for c, x in enumerate(near)]
        yield out


def _key_mask(chunk: Chunk, at: _At, m: int, scale: float) -> Vector:
    heads, live = chunk.heads, _live(chunk)
    out = np.zeros((heads.dim, heads.count, heads.t))
    out[(at.distance + m) % heads.dim] = scale * (live & at.slots(heads.t))
    return out.reshape(-1)


def _value_mask(chunk: Chunk, at: _At, m: int, scale: float) -> Vector:
    heads = chunk.heads
    out = np.zeros((heads.dim, heads.count, heads.t))
    out[(at.distance - m) % heads.dim] = scale * at.slots(heads.t)
    return out.reshape(-1)


def _live(chunk: Chunk) -> Vector:
    s = np.arange(chunk.heads.t)
    return (s >= chunk.start) & (s < chunk.start + chunk.count)


def _key_plain(
    chunk: Chunk, g: int, m: int, known: Callable[[], PlainKeys], scale: float, whole: bool
) -> Vector:
    """Public keys of the group less the shifts, where lane m of value g has keys."""
    heads, plain, live = chunk.heads, known(), _live(chunk)
    out = np.zeros((heads.dim, heads.count, heads.t))
    for i in range(heads.dim):
        distance = g * heads.dim + (i - m) % heads.dim
        if whole and distance >= heads.t:
            continue
        s = np.flatnonzero(live if whole else live & _At(distance).slots(heads.t))
        keys = -plain.shifts[s, :, i]
        if not whole:
            keys = keys + plain.group[s - distance, :, i]
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
