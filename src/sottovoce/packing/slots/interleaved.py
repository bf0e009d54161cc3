"""Interleaved replicated packing: one vector times a matrix in few rotations (Cachemir, section 4).

A vector of d values lies *compact*: value i at slot i·t, t = n/d, zeros between. The product spreads every
value over its t slots, shifted so that one plaintext holds n weights, and ends compact again, with junk
between. Both widths are powers of two (pad with zero rows and columns) and at most n.

Cost: max(1, d_in·d_out/n) plaintexts, log2 t_in + log2 t_out + 2·√plaintexts − 2 rotations, one level.
A real vector and matrix take half of the plaintexts, *folded*: the replicated vector and what the second half
of the plaintexts meets are the two parts of one complex value, for one rotation and one conjugation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from sottovoce.errors import UsageError
from sottovoce.packing.slots.arithmetic import (
    Plain,
    SlotArithmetic,
    V,
    Vector,
    baby_steps,
    every,
    giant_steps,
)


@dataclass(frozen=True)
class Interleaved:
    """The product of a compact vector (d_in) with W (d_in, d_out) in n slots. radix: of the sums of rotations
    before and behind it (`SlotArithmetic.fold`)."""

    n: int
    d_in: int
    d_out: int
    radix: int = 2

    def __post_init__(self) -> None:
        for value in (self.n, self.d_in, self.d_out):
            if value < 1 or value & (value - 1):
                raise UsageError(f"packing: {value} is not a power of two; pad with zero rows and columns")
        if max(self.d_in, self.d_out) > self.n:
            raise UsageError(f"packing: {self.d_in} x {self.d_out} is wider than {self.n} slots")

    @property
    def t_in(self) -> int:
        return self.n // self.d_in

    @property
    def t_out(self) -> int:
        return self.n // self.d_out

    @property
    def count(self) -> int:
        """Plaintexts."""
        return max(1, self.d_in * self.d_out // self.n)

    @property
    def step(self) -> int:
        """Between the rotations that belong to consecutive plaintexts."""
        return self.t_in * self.t_out

    @property
    def babies(self) -> int:
        return baby_steps(self.count)

    @cached_property
    def _inputs(self) -> Vector:
        """Which input a replicated vector has in each slot."""
        j, tau = np.arange(self.n), max(self.t_in, self.t_out)
        return (j // self.t_in + (tau // self.t_in) * (j % self.t_in)) % self.d_in

    def place(self, x: Vector) -> Vector:
        """(d_in,) -> (n,) compact."""
        return place(x, self.n)

    def replicate(self, ar: SlotArithmetic[V], x: V) -> V:
        """A compact vector, as `product` needs it. Matrices with the same widths share it."""
        return ar.fold(x, max(self.t_in, self.t_out) - 1, self.t_in, self.radix)

    def plaintexts(self, weights: Vector) -> list[Plain]:
        """W (d_in, d_out), real or complex, as the plaintexts that `product` takes."""
        assert weights.shape == (self.d_in, self.d_out)
        return [partial(self.plaintext, weights, q) for q in range(self.count)]

    def plaintext(self, weights: Vector, q: int) -> Vector:
        """Number q, rotated back by the giant step that follows it."""
        return np.roll(self._entries(weights, q), (q // self.babies) * self.babies * self.step)

    def _entries(self, weights: Vector, q: int) -> Vector:
        j = np.arange(self.n)
        entries = weights[(self._inputs + q * self.t_out) % self.d_in, j // self.t_out]
        if self.d_in * self.d_out < self.n:  # one plaintext holds every weight more than once
            square = self.d_out >= self.d_in
            spare = j % self.t_out >= self.d_in if square else j % self.t_in >= self.d_out
            entries = np.where(spare, 0, entries)
        return np.asarray(entries)

    def product(self, ar: SlotArithmetic[V], replicated: V, plaintexts: Sequence[Plain]) -> V:
        """Partial products; baby steps are shared, giant steps follow the sums."""
        rotated = ar.rotate_many(replicated, [b * self.step for b in range(min(self.babies, self.count))])
        return giant_steps(ar, rotated, plaintexts, self.step)

    def folded_plaintexts(self, weights: Vector) -> list[Plain]:
        """A real W for `apply_folded`: half as many."""
        half = self.count // 2
        small = baby_steps(half)

        def make(q: int) -> Vector:
            first, second = (self._entries(weights, m) for m in (q, q + half))
            return np.roll(0.5 * (first + 1j * second), (q // small) * small * self.step)

        return [partial(make, q) for q in range(half)]

    def apply_folded(self, ar: SlotArithmetic[V], x: V, plaintexts: Sequence[Plain]) -> V:
        """`apply` for a real x and a real W of two plaintexts or more: the real part is the product, and the
        imaginary one, which is none, vanishes with the conjugate."""
        half = len(plaintexts)
        e = self.replicate(ar, x)
        e = ar.sub(e, ar.times_i(ar.rotate(e, half * self.step)))
        turned = ar.rotate_many(e, [b * self.step for b in range(baby_steps(half))])
        y = self.fold(ar, giant_steps(ar, turned, plaintexts, self.step))
        return ar.add(y, ar.conjugate(y))

    def fold(self, ar: SlotArithmetic[V], partial_sums: V) -> V:
        """Output o at slot o·t_out, junk between."""
        return ar.fold(partial_sums, 1, self.t_out, self.radix)

    def apply(self, ar: SlotArithmetic[V], x: V, plaintexts: Sequence[Plain]) -> V:
        """x compact -> x·W compact, with junk between."""
        return self.fold(ar, self.product(ar, self.replicate(ar, x), plaintexts))

    def mask(self, values: Vector | float = 1.0) -> Plain:
        """Clears the junk; `values` (d_out,) or a number multiplies what stays."""
        return lambda: place(np.broadcast_to(values, (self.d_out,)), self.n)

    def read(self, slots: Vector) -> Vector:
        """(n,) -> the outputs (d_out,)."""
        return slots[:: self.t_out]


def place(x: Vector, n: int) -> Vector:
    """A compact vector: x_i at slot i·n/len(x)."""
    out = np.zeros(n, x.dtype)
    out[:: n // len(x)] = x
    return out


def padded(weights: Vector, rows: int, columns: int) -> Vector:
    """W with zero rows and columns behind: padded outputs are exactly zero."""
    out = np.zeros((rows, columns), weights.dtype)
    out[: weights.shape[0], : weights.shape[1]] = weights
    return out


__all__ = ["Interleaved", "every", "padded", "place"]
