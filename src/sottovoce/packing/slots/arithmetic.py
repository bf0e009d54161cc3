"""What a program on slots may do: rotate, multiply, add, evaluate a polynomial, refresh.

Layouts, attention and the decoder of the `fhe` engine are written on this interface once. Three things run
it: `PlainSlots` (numbers in NumPy: the reference, and the simulation of approximation and noise),
`CountingSlots` (no numbers, only how many operations at which level: the planner), and the CKKS evaluator.

A value is a vector of n complex slots at a level: the number of products that it can still pass. `rotate` is
a left rotation, rotate(x, k)[j] = x[(j + k) mod n]. Products of values at different levels happen at the
lower one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from sottovoce.packing.slots.polynomial import Chebyshev

V = TypeVar("V")
MEAN_BOUND = 0.25
RADIUS = 2.0**0.45  # a polynomial's radius is at most this factor from 1
Vector = npt.NDArray[Any]
# A plaintext is made when it is needed: counting needs none, and a large model has too many to keep.
Plain = Callable[[], Vector]


def constant(values: Vector) -> Plain:
    """A plaintext that is there already."""
    return lambda: values


class SlotArithmetic(ABC, Generic[V]):
    """n slots; `top` is the level after a bootstrap."""

    n: int
    top: int

    @abstractmethod
    def level(self, x: V) -> int: ...

    @abstractmethod
    def drop(self, x: V, level: int) -> V:
        """The same value at a lower level, where everything is cheaper. No-op if it is there already."""

    @abstractmethod
    def rotate_many(self, x: V, steps: Sequence[int]) -> list[V]:
        """Rotations of one value; implementations share what they can. A step of 0 is free."""

    @abstractmethod
    def conjugate(self, x: V) -> V: ...

    @abstractmethod
    def times_i(self, x: V) -> V:
        """x·i: free, no level."""

    @abstractmethod
    def add(self, x: V, y: V) -> V: ...

    @abstractmethod
    def sub(self, x: V, y: V) -> V: ...

    @abstractmethod
    def add_plain(self, x: V, p: Plain) -> V: ...

    @abstractmethod
    def sum_plain(self, terms: Sequence[tuple[V, Plain]]) -> V:
        """Σ x·p: one level, one rescaling for all terms."""

    @abstractmethod
    def sum_products(self, terms: Sequence[tuple[V, V]]) -> V:
        """Σ x·y: one level, one relinearisation for all terms."""

    @abstractmethod
    def polynomial(self, x: V, p: Chebyshev) -> V:
        """p in every slot; takes p.depth levels. The real parts must lie in p's domain, the imaginary ones
        be 0. p.radius must be near 1 (`RADIUS`): powers of other numbers run out of precision."""

    @abstractmethod
    def times(self, x: V, k: int) -> V:
        """x times a whole number: no level."""

    @abstractmethod
    def bootstrap(self, x: V) -> V:
        """x at the top level. The mean of |slots| must not exceed `MEAN_BOUND`: the refresh is exact only
        for small coefficients, and a coefficient is at most that mean."""

    def rotate(self, x: V, k: int) -> V:
        return self.rotate_many(x, [k])[0]

    def mul_plain(self, x: V, p: Plain) -> V:
        return self.sum_plain([(x, p)])

    def mul(self, x: V, y: V) -> V:
        return self.sum_products([(x, y)])

    def rotate_sum(self, x: V, steps: Sequence[int]) -> V:
        """Σ over steps of rotate(x, step); implementations share what they can."""
        return reduce(self.add, self.rotate_many(x, steps))

    def fold(self, x: V, step: int, count: int, radix: int = 2) -> V:
        """Σ over i < count of rotate(x, i·step); count and radix powers of two. log2 rotations; with a larger
        radix fewer sums of more rotations, which share their work, and more keys."""
        while count > 1:
            size = min(radix, count)
            count //= size
            x = self.rotate_sum(x, [i * step * count for i in range(size)])
        return x

    def spread(self, x: V, count: int) -> V:
        """Copies of a value whose slots j are zero unless count divides j: to the `count` slots from j
        on."""
        return self.fold(x, -1, count)

    def real_imaginary(self, x: V) -> tuple[V, V]:
        """(2·Re x, 2·Im x): one conjugation. The factor stays, so that no level is spent on it."""
        other = self.conjugate(x)
        turned = self.times_i(self.sub(other, x))
        return self.add(x, other), turned


def baby_steps(count: int) -> int:
    """How many of `count` rotations are made one by one; a power of two near the root."""
    return 1 << (count.bit_length() // 2)


def giant_steps(ar: SlotArithmetic[V], turned: Sequence[V], plaintexts: Sequence[Plain], step: int) -> V:
    """Σ_m rotate(x, m·step) ⊙ P_m from the baby steps `turned` of x; plaintext m is stored rotated right by
    its giant step. One level; giant steps follow the sums, by Horner: one giant key."""
    total: V | None = None
    small = len(turned)
    for start in reversed(range(0, len(plaintexts), small)):
        part = ar.sum_plain(list(zip(turned, plaintexts[start : start + small], strict=False)))
        total = part if total is None else ar.add(part, ar.rotate(total, small * step))
    assert total is not None
    return total


def power_of_two(value: int) -> int:
    """The smallest power of two that is not below."""
    return 1 << max(value - 1, 0).bit_length()


def every(n: int, step: int, count: int | None = None, value: float = 1.0) -> Vector:
    """`value` at the first `count` (default all) multiples of step, else 0."""
    out = np.zeros(n)
    out[: n if count is None else step * count : step] = value
    return out
