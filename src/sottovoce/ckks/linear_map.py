"""Linear maps of slot vectors as diagonals: what a rotation, a product and a sum can do.

A map of n slots is Σ_k d_k ⊙ rot(x, k), rot(x, k)[j] = x[(j + k) mod n]. A diagonal whose values repeat is
kept once per period, and its plaintext is as short. Plain NumPy; `transform` evaluates maps on ciphertexts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sottovoce.errors import ParameterError

Slots = npt.NDArray[np.complex128]

_REPEATS = 1e-12  # relative: diagonals come from sums of products of roots of unity


@dataclass(frozen=True, eq=False)
class LinearMap:
    """slots: n. diagonals: shift in [0, n) -> (p,) complex, p a power of two that divides n."""

    slots: int
    diagonals: Mapping[int, Slots]

    def __post_init__(self) -> None:
        for shift, values in self.diagonals.items():
            if not 0 <= shift < self.slots or self.slots % len(values):
                raise ParameterError(
                    f"a diagonal {shift} of {len(values)} values does not fit {self.slots} slots"
                )

    @property
    def stored(self) -> int:
        """How many values the diagonals hold."""
        return sum(len(values) for values in self.diagonals.values())

    def __call__(self, x: npt.NDArray[np.generic]) -> Slots:
        """The map applied to (n,)."""
        total = np.zeros(self.slots, np.complex128)
        for shift, values in self.diagonals.items():
            total += np.tile(values, self.slots // len(values)) * np.roll(x, -shift)
        return total

    def after(self, first: LinearMap) -> LinearMap:
        """The map x -> self(first(x)); equal shifts are added, periods shortened where values allow it."""
        if first.slots != self.slots:
            raise ParameterError(f"maps of {first.slots} and {self.slots} slots cannot follow each other")
        found: dict[int, Slots] = {}
        for outer, left in self.diagonals.items():
            for inner, right in first.diagonals.items():
                size = max(len(left), len(right))
                turned = np.tile(np.roll(right, -outer), size // len(right))
                product = np.tile(left, size // len(left)) * turned
                shift = (outer + inner) % self.slots
                found[shift] = _sum(found[shift], product) if shift in found else product
        return LinearMap(self.slots, {shift: shortened(values) for shift, values in sorted(found.items())})

    def times(self, factor: complex) -> LinearMap:
        """The map times a constant."""
        return LinearMap(self.slots, {k: factor * values for k, values in self.diagonals.items()})

    def widened(self, slots: int) -> LinearMap:
        """The same map on vectors of a longer period, acting on every stretch of n slots alike."""
        if slots % self.slots:
            raise ParameterError(f"{slots} is no multiple of {self.slots} slots")
        return LinearMap(slots, self.diagonals)

    def scaled_rows(self, factors: Slots) -> LinearMap:
        """x -> factors ⊙ self(x); factors (p,)."""
        return diagonal(self.slots, factors).after(self)

    def scaled_columns(self, factors: Slots) -> LinearMap:
        """x -> self(factors ⊙ x); factors (p,)."""
        return self.after(diagonal(self.slots, factors))


def diagonal(slots: int, values: Slots) -> LinearMap:
    """x -> values ⊙ x."""
    return LinearMap(slots, {0: np.asarray(values, np.complex128)})


def from_matrix(matrix: npt.NDArray[np.generic]) -> LinearMap:
    """A square matrix (n, n), zero diagonals left out."""
    n = len(matrix)
    rows = np.arange(n)
    diagonals = {k: np.asarray(matrix[rows, (rows + k) % n], np.complex128) for k in range(n)}
    return LinearMap(n, {k: shortened(values) for k, values in diagonals.items() if values.any()})


def compose(maps: Sequence[LinearMap]) -> LinearMap:
    """One map for several, the first of them applied first."""
    total = maps[0]
    for following in maps[1:]:
        total = following.after(total)
    return total


def shortened(values: Slots) -> Slots:
    """One period of a vector of 2^k values."""
    largest = float(np.abs(values).max(initial=0.0))
    while len(values) > 1:
        half = len(values) // 2
        if np.abs(values[:half] - values[half:]).max() > _REPEATS * largest:
            break
        values = values[:half]
    return values


def _sum(a: Slots, b: Slots) -> Slots:
    size = max(len(a), len(b))
    return np.tile(a, size // len(a)) + np.tile(b, size // len(b))
