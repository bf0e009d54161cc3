"""Other packings of vector times matrix, to compare with: one private token, the same arithmetic.

- *diagonals*: the vector replicated with period d; d plaintexts, 2·√d rotations. The honest baseline.
- *columns* (MOAI): one ciphertext a column of the (tokens, d) input; every product is with one number, and
  nothing is rotated. d input ciphertexts, d² products; made for thousands of tokens at a time.
- *diagonal-major* (THOR): tokens in tiles of 128, tile stored by its diagonals, n/128 of them in one
  ciphertext, two such real ciphertexts as the parts of a complex one. d_in·d_out·64/n plaintexts whatever
  number of the 128 rows is live.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from sottovoce.packing.slots.arithmetic import Plain, SlotArithmetic, V, Vector
from sottovoce.packing.slots.chunk import babies, diagonals, prerotated

THOR_ROWS = 128


def diagonal_plaintexts(weights: Vector, n: int) -> list[Plain]:
    """W (d, d) for `chunk.diagonals` with step 1 on a vector of period d."""
    d = len(weights)

    def make(m: int) -> Vector:
        o = np.arange(n) % d
        return prerotated(weights[(o + m) % d, o], m, d, 1)

    return [partial(make, m) for m in range(d)]


def diagonal_product(ar: SlotArithmetic[V], x: V, plaintexts: Sequence[Plain]) -> V:
    """x with period d -> x·W with period d."""
    return diagonals(ar, x, plaintexts, 1)


def column_product(ar: SlotArithmetic[V], columns: Sequence[V], weights: Vector) -> list[V]:
    """columns[j]: x_j of every token. -> one ciphertext for each output."""
    return [
        ar.sum_plain([(x, partial(np.full, 1, w)) for x, w in zip(columns, weights[:, o], strict=True)])
        for o in range(weights.shape[1])
    ]


@dataclass(frozen=True)
class DiagonalMajor:
    """A (rows, d_in) tile times W. Slot k·rows + i of ciphertext a holds x[i, (i + a·lanes + k) mod d_in]:
    `lanes` diagonals of the tile in one ciphertext. Needs lanes to divide both widths.

    Real inputs a and a + inputs/2 travel as real and imaginary part: half of the plaintexts, and an output's
    conjugate to leave the real part."""

    n: int
    d_in: int
    d_out: int
    rows: int = THOR_ROWS

    @property
    def lanes(self) -> int:
        return min(self.n // self.rows, self.d_in, self.d_out)

    @property
    def inputs(self) -> int:
        """Input ciphertexts."""
        return self.d_in // self.lanes

    @property
    def outputs(self) -> int:
        return self.d_out // self.lanes

    @property
    def count(self) -> int:
        """Plaintexts."""
        return self.pairs * self.outputs * self.lanes

    @property
    def pairs(self) -> int:
        """Complex input ciphertexts."""
        return -(-self.inputs // 2)

    def place(self, x: Vector) -> list[Vector]:
        """(rows, d_in) -> the slots of each complex input ciphertext."""
        i, k = np.arange(self.rows)[None, :], np.arange(self.lanes)[:, None]
        real = [x[i, (i + a * self.lanes + k) % self.d_in].reshape(-1) for a in range(self.inputs)]
        first, second = real[: self.pairs], real[self.pairs :] or [np.zeros_like(real[0])]
        return [a + 1j * b for a, b in zip(first, second, strict=True)]

    def read(self, slots: Sequence[Vector]) -> Vector:
        """The slots of each output ciphertext -> (rows, d_out)."""
        out = np.zeros((self.rows, self.d_out))
        i, k = np.arange(self.rows)[None, :], np.arange(self.lanes)[:, None]
        for b, values in enumerate(slots):
            out[i, (i + b * self.lanes + k) % self.d_out] = values.real.reshape(self.lanes, self.rows)
        return out

    def plaintext(self, weights: Vector, a: int, b: int, m: int) -> Vector:
        """Lane k of output b meets lane k + m of complex input a. Halved: the conjugate adds the rest."""
        parts = [self._entries(weights, each, b, m) for each in range(a, self.inputs, self.pairs)]
        entries = parts[0] - 1j * parts[1] if len(parts) > 1 else parts[0]
        return prerotated(0.5 * entries, m, self.lanes, self.rows)

    def _entries(self, weights: Vector, a: int, b: int, m: int) -> Vector:
        i, k = np.arange(self.rows)[None, :], np.arange(self.lanes)[:, None]
        source = (i + a * self.lanes + (k + m) % self.lanes) % self.d_in
        return np.asarray(weights[source, (i + b * self.lanes + k) % self.d_out].reshape(-1))

    def output(self, ar: SlotArithmetic[V], turned: Sequence[Sequence[V]], weights: Vector, b: int) -> V:
        """Output ciphertext b from the baby rotations of all inputs."""
        small, total = babies(self.lanes), None
        for start in reversed(range(0, self.lanes, small)):
            terms = [
                (turned[a][m - start], partial(self.plaintext, weights, a, b, m))
                for a in range(self.pairs)
                for m in range(start, start + small)
            ]
            part = ar.sum_plain(terms)
            total = part if total is None else ar.add(part, ar.rotate(total, small * self.rows))
        assert total is not None
        return ar.add(total, ar.conjugate(total))

    def babies(self, ar: SlotArithmetic[V], x: Sequence[V]) -> list[list[V]]:
        """The rotations of the inputs that all outputs share."""
        return [ar.rotate_many(c, [m * self.rows for m in range(babies(self.lanes))]) for c in x]

    def apply(self, ar: SlotArithmetic[V], x: Sequence[V], weights: Vector) -> list[V]:
        turned = self.babies(ar, x)
        return [self.output(ar, turned, weights, b) for b in range(self.outputs)]
