"""A matrix product in tiles that different machines compute.

In slots a row of a matrix is spread over all diagonals of an output ciphertext, so that rows are no cut. What
is independent are the sums of giant steps: giant step j of output o needs all inputs, rotated by the baby
steps, and the diagonals B j … B j + B − 1. A tile is some giant steps of one output. Sums modulo the primes
have one result in every order; rotations round, but Horner's rule takes them one after the other from the
highest giant step to the lowest, wherever the sums are. So the product has the same bits as in one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sottovoce.bgv import Ciphertext, Evaluator
from sottovoce.packing import MatVecPlan

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Tile:
    """Giant steps `first` … `last` − 1 of output ciphertext `output`."""

    output: int
    first: int
    last: int

    def diagonals(self, plan: MatVecPlan) -> tuple[int, int]:
        """The first of its diagonals, and the one behind its last."""
        return self.first * plan.babies, min(self.last * plan.babies, plan.rotations)


def cut(plan: MatVecPlan, parts: int) -> list[list[Tile]]:
    """The tiles of every part: equal numbers of giant steps, in order; some get none of a small matrix."""
    steps = plan.output_count * plan.giants
    bounds = [steps * i // parts for i in range(parts + 1)]
    return [list(_tiles(plan.giants, *pair)) for pair in zip(bounds, bounds[1:], strict=False)]


def _tiles(giants: int, begin: int, end: int) -> list[Tile]:
    tiles = []
    while begin < end:
        output, first = divmod(begin, giants)
        last = min(giants, first + end - begin)
        tiles.append(Tile(output, first, last))
        begin += last - first
    return tiles


def tile_sums(
    evaluator: Evaluator, plan: MatVecPlan, babies: Sequence[Sequence[Ciphertext]], plaintexts: Words
) -> list[Ciphertext]:
    """Sums of giant steps in order, batches of G each.

    babies: [c][i] of every input and baby step. plaintexts: (I, K, L, N), K diagonals from the first of a
    giant step on.
    """
    width = plan.babies
    full, rest = divmod(plaintexts.shape[1], width)
    sums: list[Ciphertext] = []
    for first, count, length in ((0, full, width), (full, min(rest, 1), rest)):
        if count:
            rows = [
                [one[(first + giant) * width + i] for one in plaintexts for i in range(length)]
                for giant in range(count)
            ]
            made = evaluator.mul_plain_matrix([baby for row in babies for baby in row[:length]], rows)
            sums += [made[giant] for giant in range(count)]
    return sums


def fold(
    evaluator: Evaluator, plan: MatVecPlan, sums: Sequence[Ciphertext], above: Ciphertext | None
) -> Ciphertext:
    """Horner's rule over these giant steps. above: what the giant steps above them came to."""
    total = above
    for inner in reversed(sums):
        total = inner if total is None else evaluator.add(evaluator.rotate(total, plan.giant_step), inner)
    assert total is not None
    return total
