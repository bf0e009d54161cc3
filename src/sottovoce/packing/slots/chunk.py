"""Several private tokens in one ciphertext: where they lie, their products with matrices, and their attention
to public tokens: depth one.

T = n/d tokens; feature m of the token at sub-slot s lies at slot m·T + s, the stride of one token at a time,
so keys and values of a chunk are groups of the cache as they are. Contraction runs over the slow index: its
rotation is cyclic and needs no mask. Public keys and values are plaintexts, in blocks of d_h tokens: the
score of token c·d_h + o of block c lands at (o·H + h)·T + s.

A chunk of few tokens leaves most sub-slots empty. T/w values of it share a ciphertext, w the power of two
that holds its tokens: value a is rotated right by a·w. Slots are then counted from the chunk's first sub-
slot: (block, head, a, token).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from sottovoce.errors import UsageError
from sottovoce.packing.slots.arithmetic import Plain, SlotArithmetic, V, Vector, power_of_two
from sottovoce.packing.slots.heads import Heads


@dataclass(frozen=True)
class Chunk:
    """`count` tokens at the sub-slots from `start` on, behind `start` others of their group."""

    heads: Heads
    start: int
    count: int

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.start <= self.heads.t - self.count:
            raise UsageError(
                f"packing: {self.count} tokens behind {self.start} do not fit a group of {self.heads.t}"
            )

    @property
    def window(self) -> int:
        """w."""
        return power_of_two(self.count)

    @property
    def windows(self) -> int:
        """T/w: values to a ciphertext."""
        return self.heads.t // self.window

    @property
    def distances(self) -> int:
        """From a token to itself and to those before it in the group."""
        return self.start + self.count

    @property
    def own(self) -> int:
        """Score values of the group: one for every d_h distances."""
        return -(-self.distances // self.heads.dim)

    def packs(self, values: int) -> int:
        """Ciphertexts that hold so many values."""
        return -(-values // self.windows)

    def slots(self, places: Vector) -> Vector:
        """(…, windows, window), counted from the first token, -> (n,)."""
        shape = (self.heads.width, self.windows, self.window)
        full = np.broadcast_to(places, (*shape[: max(3 - places.ndim, 0)], *places.shape))
        return np.roll(full.reshape(-1), self.start)

    def live(self, value: float = 1.0, first: bool = True) -> Vector:
        """(n,): `value` at the tokens of the first window (of all of them without `first`)."""
        places = np.zeros((self.windows, self.window))
        places[: 1 if first else None, : self.count] = value
        return self.slots(places)

    def idle(self, value: float) -> Plain:
        """`value` at the sub-slots of every window that hold no token."""
        return lambda: value - self.live(value, first=False)

    def tokens(self, rows: Vector) -> Vector:
        """(count, d) -> (n,): feature m of token i at m·T + start + i, zeros elsewhere."""
        places = np.zeros((rows.shape[1], self.windows, self.window), rows.dtype)
        places[:, 0, : self.count] = rows.T
        return self.slots(places)

    def read(self, slots: Vector, d: int) -> Vector:
        """(n,) -> (count, d)."""
        return np.asarray(slots.reshape(d, -1).T[self.start : self.start + self.count])

    def pack(self, ar: SlotArithmetic[V], values: Sequence[V]) -> list[V]:
        """Values that are zero off their tokens, into as few as hold them. One rotation a value, one key."""
        out = []
        for at in range(0, len(values), self.windows):
            *others, total = values[at : at + self.windows]
            for x in reversed(others):
                total = ar.add(x, ar.rotate(total, -self.window))
            out.append(total)
        return out

    def unpack(self, ar: SlotArithmetic[V], packed: Sequence[V], values: int) -> list[V]:
        """The values again, with others beside their tokens."""
        out: list[V] = []
        for x in packed:
            out += turns(ar, x, self.window, min(self.windows, values - len(out)))
        return out


def place_chunk(x: Vector, n: int) -> Vector:
    """(T, d) -> (n,)."""
    assert x.shape[0] * x.shape[1] == n
    return np.asarray(x.T.reshape(-1))


def read_chunk(slots: Vector, d: int) -> Vector:
    """(n,) -> (T, d)."""
    return np.asarray(slots.reshape(d, -1).T)


def babies(count: int) -> int:
    """Baby steps for `count` rotations, a power of two near the root."""
    return 1 << ((count.bit_length() - 1 + 1) // 2)


def turns(ar: SlotArithmetic[V], x: V, step: int, count: int) -> list[V]:
    """x rotated by 0, step, 2·step, …: one after another, which takes one key."""
    out = [x]
    while len(out) < count:
        out.append(ar.rotate(out[-1], step))
    return out


def products(
    ar: SlotArithmetic[V],
    xs: Sequence[V],
    matrices: Sequence[Sequence[Sequence[Plain]]],
    step: int,
    hoisted: bool = False,
) -> list[V]:
    """Output o = Σ_i Σ_m rotate(x_i, m·step) ⊙ matrices[o][i][m]; plaintexts made for `prerotated`.

    Baby steps are shared by the outputs, giant steps by the inputs. One level; two keys, or `hoisted` one for
    every baby step.
    """
    count = len(matrices[0][0])
    small = min(babies(count), count)
    steps = [b * step for b in range(small)]
    turned = [ar.rotate_many(x, steps) if hoisted else turns(ar, x, step, small) for x in xs]
    out = []
    for rows in matrices:
        total: V | None = None
        for start in reversed(range(0, count, small)):
            part = ar.sum_plain(
                [
                    term
                    for x, row in zip(turned, rows, strict=True)
                    for term in zip(x, row[start : start + small], strict=False)
                ]
            )
            total = part if total is None else ar.add(part, ar.rotate(total, small * step))
        assert total is not None
        out.append(total)
    return out


def diagonals(ar: SlotArithmetic[V], x: V, plaintexts: Sequence[Plain], step: int) -> V:
    """Σ_m rotate(x, m·step) ⊙ P_m by baby and giant steps; plaintext m made for `prerotated`."""
    return products(ar, [x], [[plaintexts]], step, hoisted=True)[0]


def prerotated(values: Vector, m: int, count: int, step: int) -> Vector:
    """Plaintext m, rotated back by the giant step that follows it in `products`."""
    small = babies(count)
    return np.roll(values, (m // small) * small * step)


def linear_plaintexts(weights: Vector, n: int, live: Vector | None = None) -> list[Plain]:
    """W (d, d) for `products` with step n/d. live: what outputs are multiplied by."""
    d = len(weights)
    return [partial(_diagonal, weights, n // d, live, m) for m in range(d)]


def _diagonal(weights: Vector, step: int, live: Vector | None, m: int) -> Vector:
    d, o = len(weights), np.arange(len(weights))
    values = np.repeat(weights[(o + m) % d, o], step)
    return prerotated(values if live is None else values * live, m, d, step)


def public_scores(heads: Heads, keys: Vector, c: int) -> list[Plain]:
    """Plaintexts of block c of public keys (tokens, H, d_h), for `diagonals` on q with step tH."""
    dim, block = heads.dim, heads.block

    def make(m: int) -> Vector:
        j = np.arange(heads.n)
        o, h = j // block, (j // heads.t) % heads.count
        return prerotated(keys[c * dim + o, h, (o + m) % dim], m, dim, block)

    return [partial(make, m) for m in range(dim)]


def public_values(heads: Heads, values: Vector, c: int, scale: float = 1.0) -> list[Plain]:
    """Plaintexts of block c of public values (tokens, H, d_h), for `diagonals` on P_c with step tH; zeros
    behind the last token."""
    dim, block = heads.dim, heads.block

    def make(m: int) -> Vector:
        o = np.arange(dim)
        token = c * dim + (o + m) % dim
        rows = np.zeros((dim, heads.count))
        known = token < len(values)
        rows[known] = scale * values[token[known], :, o[known]]
        return prerotated(np.repeat(rows.reshape(-1), heads.t), m, dim, block)

    return [partial(make, m) for m in range(dim)]
