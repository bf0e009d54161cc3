"""Linear maps of ciphertexts: baby steps and giant steps, both lazy ("double hoisting").

Σ_k d_k ⊙ rot(x, k) with k = G + b is Σ_G rot(Σ_b rot(d_k, −G) ⊙ rot(x, b), G). All baby steps start from one
decomposition of x and stay modulo Q·P, where the products and inner sums are taken too; a giant step divides
only c_1 by P to switch it again; one division by P, fused with the rescaling, ends the map.

Source: Bossuat et al., EUROCRYPT 2021.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import gcd

import numpy as np

from sottovoce.ckks.ciphertext import Ciphertext, Plaintext, Wide, empty
from sottovoce.ckks.encoder import Encoder
from sottovoce.ckks.evaluator import Evaluator
from sottovoce.ckks.linear_map import LinearMap
from sottovoce.errors import LevelError, ParameterError

# What a giant step costs in baby steps: another decomposition and half a division by P.
_GIANT = 2.5


@dataclass(frozen=True, eq=False)
class Transform:
    """A map with its plaintexts for one level. One level deep.

    rows: giant step -> baby step -> the diagonal, turned back by the giant step. scale: of every plaintext.
    """

    level: int
    slots: int
    scale: float
    rows: Mapping[int, Mapping[int, Plaintext]] = field(repr=False)

    @property
    def babies(self) -> tuple[int, ...]:
        """Rotations of the input, 0 among them if it is needed as it is."""
        return tuple(sorted({baby for row in self.rows.values() for baby in row}))

    @property
    def giants(self) -> tuple[int, ...]:
        """Rotations of the inner sums."""
        return tuple(sorted(self.rows))

    @property
    def steps(self) -> dict[int, int]:
        """The rotations that need a key, each with the level of the key."""
        return {step: self.level for step in {*self.babies, *self.giants} - {0}}

    @property
    def key_switches(self) -> int:
        return sum(step != 0 for step in self.babies) + sum(step != 0 for step in self.giants)

    @property
    def nbytes(self) -> int:
        """Memory of the plaintexts."""
        return sum(plain.data.nbytes for row in self.rows.values() for plain in row.values())

    def __call__(self, evaluator: Evaluator, x: Ciphertext, rescale: int = 1) -> Ciphertext:
        """The map of x, at the scale x.scale·self.scale divided by the primes it is rescaled by.

        x: at this level or above, read with `self.slots` slots. MissingKeyError without a key for every
        rotation in `steps`.
        """
        if x.level < self.level:
            raise LevelError(
                f"a map prepared for level {self.level} cannot take a ciphertext of level {x.level}"
            )
        x = evaluator.drop_to(x, self.level).with_slots(self.slots)
        inner = self._inner(evaluator, evaluator.rotate_wide_hoisted(x, self.babies))
        # All the others are added to the first, the one that need not be turned if there is one.
        total: Wide | None = None
        for giant in sorted(inner):
            total = evaluator.turn_wide(inner[giant], giant, total)
        assert total is not None
        return evaluator.mod_down(total, rescale)

    def _inner(self, evaluator: Evaluator, turned: Sequence[Wide]) -> dict[int, Wide]:
        """The sum below every giant step; all of them in one pass over the rotated inputs."""
        first = turned[0]
        some = next(iter(next(iter(self.rows.values())).values()))
        zero = np.zeros_like(some.data)
        plains = [
            [row[baby].data if baby in row else zero for baby in self.babies] for row in self.rows.values()
        ]
        out = empty(len(plains), *first.data.shape)
        ring = evaluator.parameters.wide_ring(first.level)
        ring.mac_matrix(out, [each.data for each in turned], plains, accumulate=False)
        scale = first.scale * self.scale
        return {
            giant: replace(first, data=data, scale=scale) for giant, data in zip(self.rows, out, strict=True)
        }


def prepare(encoder: Encoder, linear: LinearMap, level: int, scale: float) -> Transform:
    """Encode a map's diagonals for a level. scale: of the plaintexts; precision is lost below the primes'."""
    if not linear.diagonals:
        raise ParameterError("a map without a diagonal is zero")
    size = babies(linear.diagonals)
    # One length for all of them: the kernel that sums takes plaintexts of equal length.
    period = max(len(values) for values in linear.diagonals.values())
    rows: dict[int, dict[int, Plaintext]] = {}
    for shift, values in linear.diagonals.items():
        baby = shift % size
        giant = shift - baby
        turned = np.roll(np.tile(values, period // len(values)), giant)
        rows.setdefault(giant, {})[baby] = encoder.encode(turned, level, scale, wide=True)
    return Transform(level, linear.slots, scale, rows)


def babies(shifts: Iterable[int]) -> int:
    """The giant step's unit that makes the fewest, cheapest rotations: shift mod unit is the baby step."""
    shifts = list(shifts)
    unit = gcd(*shifts) or 1
    best, least = unit, float("inf")
    size = unit
    while size <= 2 * max(unit, *shifts):
        small, large = {k % size for k in shifts} - {0}, {k - k % size for k in shifts} - {0}
        cost = len(small) + _GIANT * len(large)
        if cost < least:
            best, least = size, cost
        size *= 2
    return best
