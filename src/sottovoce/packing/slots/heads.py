"""Where the features of attention heads lie: order, padding, grouped heads, rotary positions.

Dimension i of head h is feature i·H + h of a compact vector of d = d_h·H features, H and d_h powers of two;
so rotary partners, half a head apart, are n/2 slots apart. Padded heads and dimensions are zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sottovoce.errors import UsageError
from sottovoce.packing.slots.arithmetic import Plain, SlotArithmetic, V, Vector, power_of_two
from sottovoce.packing.slots.interleaved import place


@dataclass(frozen=True)
class Heads:
    """Query heads, key-value heads and head width of a model, padded for n slots.

    Key-value heads are replicated: every query head has its own copy of keys and values, written into W_K
    and W_V. Query head h of the model becomes head `number(h)`: groups and heads in a group are padded
    apart.
    """

    n: int
    heads: int
    kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise UsageError(f"packing: {self.heads} heads cannot share {self.kv_heads} key-value heads")
        if self.width > self.n:
            raise UsageError(f"packing: heads of {self.width} features do not fit {self.n} slots")

    @property
    def group(self) -> int:
        """Query heads to a key-value head, padded."""
        return power_of_two(self.heads // self.kv_heads)

    @property
    def count(self) -> int:
        """H."""
        return power_of_two(self.kv_heads) * self.group

    @property
    def dim(self) -> int:
        """d_h."""
        return power_of_two(self.head_dim)

    @property
    def width(self) -> int:
        return self.count * self.dim

    @property
    def t(self) -> int:
        """Slots between features; tokens in one ciphertext of keys."""
        return self.n // self.width

    @property
    def block(self) -> int:
        """tH: slots between dimensions of a head."""
        return self.t * self.count

    @property
    def capacity(self) -> int:
        """Tokens whose scores fit one ciphertext."""
        return self.n // self.count

    def number(self, head: int) -> int:
        """h' of a query head."""
        rep = self.heads // self.kv_heads
        return (head // rep) * self.group + head % rep

    def by_head(self, values: float | Vector) -> Vector:
        """(H,) or a number -> (n,): a head's value in all slots of its scores."""
        return np.tile(np.repeat(np.broadcast_to(values, (self.count,)), self.t), self.dim)

    def features(self, interleaved: bool = False) -> Vector:
        """For each query feature (head, dim) of the model, where it lies. interleaved: rotary pairs are
        neighbours in the model's order and are brought half a head apart."""
        i = np.arange(self.head_dim)
        half = self.head_dim // 2
        if interleaved:
            i = i // 2 + half * (i % 2)
        i = np.where(i < half, i, i - half + self.dim // 2)
        h = np.array([self.number(head) for head in range(self.heads)])
        return np.asarray(i[None, :] * self.count + h[:, None]).reshape(-1)

    def query_columns(self, weights: Vector, interleaved: bool = False) -> Vector:
        """(rows, heads·head_dim) -> (rows, width) in this order."""
        out = np.zeros((weights.shape[0], self.width), weights.dtype)
        out[:, self.features(interleaved)] = weights
        return out

    def key_columns(self, weights: Vector, interleaved: bool = False) -> Vector:
        """(rows, kv_heads·head_dim) -> (rows, width): a copy for every query head."""
        rows, rep = weights.shape[0], self.heads // self.kv_heads
        split = weights.reshape(rows, self.kv_heads, 1, self.head_dim)
        copies = np.broadcast_to(split, (rows, self.kv_heads, rep, self.head_dim))
        return self.query_columns(copies.reshape(rows, self.heads * self.head_dim), interleaved)

    def output_rows(self, weights: Vector) -> Vector:
        """(heads·head_dim, columns) -> (width, columns): what takes the attention's output."""
        return self.query_columns(weights.T).T

    def rope(self, position: int, theta: float, real: bool = True) -> tuple[Plain, Plain]:
        """The two plaintexts of `rotate_half` for one position; zero off the features, so they mask too."""
        half = self.head_dim // 2
        cos, sin = np.zeros(self.dim), np.zeros(self.dim)
        angle = position * theta ** (-np.arange(half) / half)
        for start, sign in ((0, -1.0), (self.dim // 2, 1.0)):
            cos[start : start + half] = np.cos(angle)
            sin[start : start + half] = sign * np.sin(angle)
        at = np.repeat(np.arange(self.dim), self.count)
        return (lambda: place(cos[at], self.n)), (lambda: place(sin[at], self.n))

    def rotate_half(self, ar: SlotArithmetic[V], x: V, tables: tuple[Plain, Plain]) -> V:
        """Rotary positions: one rotation, one level; clears junk."""
        return ar.sum_plain([(x, tables[0]), (ar.rotate(x, self.n // 2), tables[1])])
