"""The search for the cheapest plan of a matrix shape."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from sottovoce.errors import ParameterError
from sottovoce.packing import rotations as rotating
from sottovoce.packing.cost import CostModel
from sottovoce.packing.cover import EMPTY, Cover, Index, covers
from sottovoce.packing.diagonal import MatVecPlan

DEFAULT_BABIES = rotating.SHORT


class _Rows(enum.Enum):
    """What the two rows of a ciphertext have to do with each other."""

    SHARED = "the same inputs, different outputs"
    SPLIT = "different inputs, the same outputs"
    SWAPPED = "different inputs, which the server exchanges to have all in both rows; different outputs"


def plan_matvec(
    d_out: int,
    d_in: int,
    degree: int = 8192,
    babies: int = DEFAULT_BABIES,
    cost: CostModel | None = None,
    tokens: int = 1,
) -> MatVecPlan:
    """Return the cheapest plan for a (d_out, d_in) matrix and `tokens` vectors (a power of two) in a
    ciphertext; at most `babies` baby steps.

    Both parties call it with public sizes and get the same plan.
    """
    if d_out < 1 or d_in < 1:
        raise ParameterError(f"packing: a matrix needs rows and columns, got {d_out} x {d_in}")
    if tokens < 1 or tokens & (tokens - 1) or degree // tokens < 4:
        raise ParameterError(f"packing: {tokens} tokens in a ciphertext of {degree} slots")
    return _cheapest(d_out, d_in, degree, babies, cost or CostModel(), tokens)


@lru_cache(maxsize=256)
def _cheapest(d_out: int, d_in: int, degree: int, babies: int, cost: CostModel, tokens: int) -> MatVecPlan:
    steps = [n for n in range(1, babies + 1) if rotating.has_key(tokens * n)]
    candidates = [
        plan
        for rows in _Rows
        for inputs, outputs in _ciphertext_counts(d_out, d_in, degree // tokens // 2, rows)
        for plan in _plans(d_out, d_in, degree, inputs, outputs, rows, steps, cost, tokens)
    ]
    if not candidates:
        raise ParameterError(f"packing: no plan for a {d_out} x {d_in} matrix in rows of {degree // 2} slots")
    return min(candidates, key=lambda plan: plan.milliseconds(cost))


def _ciphertext_counts(d_out: int, d_in: int, columns: int, rows: _Rows) -> Iterator[tuple[int, int]]:
    """Numbers of input and output ciphertexts worth trying: the fewest that hold the values, and one more.

    Inputs that the server makes count too.
    """
    inputs = -(-d_in // (columns * (1 if rows is _Rows.SHARED else 2)))
    outputs = -(-d_out // (columns * (1 if rows is _Rows.SPLIT else 2)))
    for more_in in range(2):
        for more_out in range(2):
            yield (inputs + more_in) * (2 if rows is _Rows.SWAPPED else 1), outputs + more_out


def _plans(
    d_out: int,
    d_in: int,
    degree: int,
    inputs: int,
    outputs: int,
    rows: _Rows,
    steps: list[int],
    cost: CostModel,
    tokens: int,
) -> Iterator[MatVecPlan]:
    """Plans with given numbers of ciphertexts."""
    columns = degree // tokens // 2
    chunk = -(-d_in // (inputs * (2 if rows is _Rows.SPLIT else 1)))
    for cover in covers(chunk, d_out, columns, outputs * (1 if rows is _Rows.SPLIT else 2)):
        yield MatVecPlan(
            d_out,
            d_in,
            degree,
            _input_layout(cover, d_in, inputs, chunk, rows),
            _output_layout(cover, outputs, rows),
            cover.rotations,
            cost.best_babies(inputs, outputs, cover.rotations, steps, tokens),
            tokens,
            rows is _Rows.SWAPPED,
        )


def _input_layout(cover: Cover, d_in: int, inputs: int, chunk: int, rows: _Rows) -> Index:
    row = np.arange(2 * inputs).reshape(inputs, 2, 1)
    chunks = row if rows is _Rows.SPLIT else row // 2
    if rows is _Rows.SWAPPED:
        sent = row[: inputs // 2]
        chunks = np.concatenate([sent, sent[:, ::-1]])
    index = np.where(cover.inputs == EMPTY, EMPTY, cover.inputs + chunk * chunks)
    return np.where(index >= d_in, EMPTY, index).astype(np.int32)


def _output_layout(cover: Cover, outputs: int, rows: _Rows) -> Index:
    if rows is _Rows.SPLIT:
        return np.repeat(cover.outputs[:, None, :], 2, axis=1)
    return cover.outputs.reshape(outputs, 2, -1)
