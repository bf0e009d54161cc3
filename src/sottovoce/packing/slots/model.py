"""The slots in NumPy: an arithmetic that only counts, and one that also computes.

Both enforce levels exactly as ciphertexts do, so a program that runs here does not run out of levels there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sottovoce.errors import RangeError
from sottovoce.packing.slots.arithmetic import RADIUS, Plain, SlotArithmetic, Vector
from sottovoce.packing.slots.polynomial import Chebyshev


@dataclass(frozen=True)
class Slots:
    """A vector at a level; `values` is None where nothing is computed."""

    level: int
    values: Vector | None = None


class CountingSlots(SlotArithmetic[Slots]):
    """Counts operations: `counts[(name, level)]`, the level at which the operation happens.

    Names: rotate, hoisted (further rotations of the same value), conjugate, mul, mul_plain, relinearize,
    rescale, bootstrap.
    """

    def __init__(self, n: int, top: int) -> None:
        self.n, self.top = n, top
        self.counts: Counter[tuple[str, int]] = Counter()
        # Rotations for which a key is needed, and the highest level at which each happens.
        self.steps: dict[int, int] = {}

    def total(self, *names: str) -> int:
        """How often the named operations happened, at all levels together."""
        return sum(count for (name, _), count in self.counts.items() if name in names)

    @property
    def rotations(self) -> int:
        return self.total("rotate", "hoisted")

    def fresh(self, values: Vector | None = None, level: int | None = None) -> Slots:
        """A value as the client encrypts it; values are repeated up to n slots."""
        return self._make(self.top if level is None else level, lambda: self._periodic(values))

    def level(self, x: Slots) -> int:
        return x.level

    def drop(self, x: Slots, level: int) -> Slots:
        return Slots(min(level, x.level), x.values)

    def rotate_many(self, x: Slots, steps: Sequence[int]) -> list[Slots]:
        out, first = [], True
        for step in steps:
            if step % self.n == 0:
                out.append(x)
                continue
            self.counts["rotate" if first else "hoisted", x.level] += 1
            self.steps[step % self.n] = max(self.steps.get(step % self.n, 0), x.level)
            first = False
            out.append(self._map(x, lambda v, step=step: np.roll(v, -step)))
        return out

    def conjugate(self, x: Slots) -> Slots:
        self.counts["conjugate", x.level] += 1
        return self._map(x, np.conj)

    def times_i(self, x: Slots) -> Slots:
        return self._map(x, lambda v: 1j * v)

    def add(self, x: Slots, y: Slots) -> Slots:
        return self._make(min(x.level, y.level), lambda: _numbers(x) + _numbers(y))

    def sub(self, x: Slots, y: Slots) -> Slots:
        return self._make(min(x.level, y.level), lambda: _numbers(x) - _numbers(y))

    def add_plain(self, x: Slots, p: Plain) -> Slots:
        return self._map(x, lambda v: v + self._periodic(p()))

    def sum_plain(self, terms: Sequence[tuple[Slots, Plain]]) -> Slots:
        level = self._spend(min(x.level for x, _ in terms), "a product with a plaintext")
        self.counts["mul_plain", level] += len(terms)
        self.counts["rescale", level] += 1
        return self._make(level - 1, lambda: sum(_numbers(x) * self._periodic(p()) for x, p in terms))

    def sum_products(self, terms: Sequence[tuple[Slots, Slots]]) -> Slots:
        level = self._spend(min(min(x.level, y.level) for x, y in terms), "a product")
        self.counts["mul", level] += len(terms)
        self.counts["relinearize", level] += 1
        self.counts["rescale", level] += 1
        return self._make(level - 1, lambda: sum(_numbers(x) * _numbers(y) for x, y in terms))

    def polynomial(self, x: Slots, p: Chebyshev) -> Slots:
        self._spend(x.level, f"a polynomial of degree {p.degree}", p.depth)
        if not 1 / RADIUS <= p.radius <= RADIUS:
            raise RangeError(f"a polynomial's argument must be scaled to radius 1, not {p.radius:.3g}")
        # Powers are made at every level on the way, the last blocks near the end.
        for i in range(p.products):
            level = x.level - min(i, p.depth - 1) if i < p.depth else x.level - p.depth + 1
            for name in ("mul", "relinearize", "rescale"):
                self.counts[name, level] += 1
        return self._make(x.level - p.depth, lambda: p(_numbers(x).real))

    def times(self, x: Slots, k: int) -> Slots:
        return self._map(x, lambda v: k * v)

    def bootstrap(self, x: Slots) -> Slots:
        self.counts["bootstrap", self.top] += 1
        return self._make(self.top, lambda: _numbers(x))

    def _spend(self, level: int, what: str, depth: int = 1) -> int:
        if level < depth:
            raise RangeError(f"level exhausted: {what} takes {depth} levels, the operand has {level}")
        return level

    def _periodic(self, values: Vector | None) -> Vector:
        assert values is not None
        return np.tile(values, self.n // len(values))

    def _map(self, x: Slots, function: object) -> Slots:
        return Slots(x.level)

    def _make(self, level: int, values: object) -> Slots:
        return Slots(level)


class PlainSlots(CountingSlots):
    """Computes as well. noise: standard deviation added to the result of every product; 0 is exact.

    refresh_noise: added by a bootstrap, to the real and to the imaginary part.
    """

    def __init__(
        self,
        n: int,
        top: int = 16,
        noise: float = 0.0,
        refresh_noise: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__(n, top)
        self._noise, self._refresh_noise, self._rng = noise, refresh_noise, rng
        self.largest_refresh = 0.0  # the largest mean of |slots| that was bootstrapped

    def sum_plain(self, terms: Sequence[tuple[Slots, Plain]]) -> Slots:
        return self._noisy(super().sum_plain(terms), self._noise)

    def sum_products(self, terms: Sequence[tuple[Slots, Slots]]) -> Slots:
        return self._noisy(super().sum_products(terms), self._noise)

    def polynomial(self, x: Slots, p: Chebyshev) -> Slots:
        return self._noisy(super().polynomial(x, p), self._noise)

    def bootstrap(self, x: Slots) -> Slots:
        self.largest_refresh = max(self.largest_refresh, float(np.mean(np.abs(_numbers(x)))))
        return self._noisy(super().bootstrap(x), self._refresh_noise)

    def _noisy(self, x: Slots, size: float) -> Slots:
        if not size or self._rng is None:
            return x
        real, imaginary = size * self._rng.standard_normal((2, self.n))
        return Slots(x.level, _numbers(x) + real + 1j * imaginary)

    def _map(self, x: Slots, function: object) -> Slots:
        assert callable(function)
        return Slots(x.level, function(_numbers(x)))

    def _make(self, level: int, values: object) -> Slots:
        assert callable(values)
        return Slots(level, np.asarray(values()))


def _numbers(x: Slots) -> Vector:
    assert x.values is not None
    return x.values
