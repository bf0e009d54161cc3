"""Several private tokens in one ciphertext, and their attention to public tokens: depth one, no masks.

T = n/d tokens; feature m of token i lies at slot m·T + i. Linear: d plaintexts for T tokens. Public keys and
values are plaintexts, in blocks of d_h tokens: the score of token c·d_h + o of block c lands at
(o·H + h)·T + i. Contraction runs over the slow index, so its rotation is cyclic and needs no mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from sottovoce.packing.slots.arithmetic import Plain, SlotArithmetic, V, Vector
from sottovoce.packing.slots.heads import Heads


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


def diagonals(ar: SlotArithmetic[V], x: V, plaintexts: Sequence[Plain], step: int) -> V:
    """Σ_m rotate(x, m·step) ⊙ P_m by baby and giant steps; plaintext m made for `prerotated`."""
    count = len(plaintexts)
    small = babies(count)
    turned = ar.rotate_many(x, [b * step for b in range(min(small, count))])
    total: V | None = None
    for start in reversed(range(0, count, small)):
        part = ar.sum_plain(list(zip(turned, plaintexts[start : start + small], strict=False)))
        total = part if total is None else ar.add(part, ar.rotate(total, small * step))
    assert total is not None
    return total


def prerotated(values: Vector, m: int, count: int, step: int) -> Vector:
    """Plaintext m, rotated back by the giant step that follows it in `diagonals`."""
    small = babies(count)
    return np.roll(values, (m // small) * small * step)


def linear_plaintexts(weights: Vector, n: int) -> list[Plain]:
    """W (d, d) for `diagonals` with step n/d."""
    d = len(weights)
    step = n // d

    def make(m: int) -> Vector:
        o = np.arange(n) // step
        return prerotated(weights[(o + m) % d, o], m, d, step)

    return [partial(make, m) for m in range(d)]


def public_scores(heads: Heads, keys: Vector, c: int) -> list[Plain]:
    """Plaintexts of block c of public keys (tokens, H, d_h), for `diagonals` on q with step tH."""
    dim, block = heads.dim, heads.block

    def make(m: int) -> Vector:
        j = np.arange(heads.n)
        o, h = j // block, (j // heads.t) % heads.count
        return prerotated(keys[c * dim + o, h, (o + m) % dim], m, dim, block)

    return [partial(make, m) for m in range(dim)]


def public_values(heads: Heads, values: Vector, c: int) -> list[Plain]:
    """Plaintexts of block c of public values (tokens, H, d_h), for `diagonals` on P_c with step tH."""
    dim, block = heads.dim, heads.block

    def make(m: int) -> Vector:
        j = np.arange(heads.n)
        o, h = j // block, (j // heads.t) % heads.count
        return prerotated(values[c * dim + (o + m) % dim, h, o], m, dim, block)

    return [partial(make, m) for m in range(dim)]
