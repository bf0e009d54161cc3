"""What a chunk's program takes as plaintext: one-hot vectors as a client lays them out, squares of matrices,
and what rows of scores add."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Generic

import numpy as np

from sottovoce.engines.fhe.program import Program
from sottovoce.engines.fhe.scores import ScoreShift
from sottovoce.engines.fhe.shape import Shape
from sottovoce.engines.fhe.weights import Matrix
from sottovoce.packing.slots import Plain, Vector
from sottovoce.packing.slots import chunk as packing
from sottovoce.packing.slots import chunk_attention as among
from sottovoce.packing.slots.arithmetic import V
from sottovoce.packing.slots.chunk import Chunk


def fits(shape: Shape) -> bool:
    """Whether chunks of a model can be computed: heads as wide as the model, of the Llama family."""
    c = shape.config
    same = shape.heads.width == shape.width and shape.ffn % shape.width == 0
    return same and c.norm == "rms" and c.rope is not None and c.gated


def chunk_sizes(count: int, private: int, t: int, least: int) -> list[int]:
    """The chunks in which the first of `count` tokens come behind `private` ones: up to the ends of groups of
    t, while that is cheaper than steps. Every full group before a chunk costs a refresh a layer more. least:
    tokens for which a chunk is cheaper in the first group; 0: never."""
    sizes: list[int] = []
    while least and count >= least + private // t:
        sizes.append(min(count, t - private % t))
        count, private = count - sizes[-1], private + sizes[-1]
    return sizes


def one_hot_ciphertexts(shape: Shape, count: int) -> int:
    """How many ciphertexts the one-hot vectors of so many tokens take."""
    return Chunk(shape.heads, 0, count).packs(-(-shape.config.vocab_size // shape.width))


def one_hots(shape: Shape, tokens: Sequence[int]) -> list[Vector]:
    """The one-hot vectors of tokens, from the first sub-slot on: entry v of the vocabulary is feature v mod d
    of value v div d."""
    chunk, d = Chunk(shape.heads, 0, len(tokens)), shape.width
    out = [np.zeros((d, chunk.windows, chunk.window)) for _ in range(one_hot_ciphertexts(shape, len(tokens)))]
    for i, token in enumerate(tokens):
        at, window = divmod(token // d, chunk.windows)
        out[at][token % d, window, i] = 1.0
    return [chunk.slots(places) for places in out]


def square(
    matrix: Matrix, row: int, column: int, shape: Shape, live: Vector | None, scale: float = 1.0
) -> list[Plain]:
    """A model's width of a matrix from (row, column) on, times what outputs are to be multiplied by."""
    d = shape.width
    if matrix.weights is None:
        return list(matrix.plaintexts[:1]) * d
    return packing.linear_plaintexts(
        scale * matrix.weights[row : row + d, column : column + d], shape.n, live
    )


def by_token(rows: Vector) -> Vector:
    """(d_h, H, tokens) -> (tokens, H, d_h)."""
    return rows.transpose(2, 1, 0)


class Rows(Generic[V]):
    """What a chunk's rows add as plaintext to the keys and scores of a layer; made when a plaintext is."""

    def __init__(self, program: Program[V], chunk: Chunk, layer: int) -> None:
        self._shape, self._chunk, self._blocks = program.shape, chunk, program.blocks
        self._functions, self._public = program.functions, program.caches[layer].public
        self._predictor = program.functions.blocks[layer].predictor
        self._first, self._private = program.length, program.private
        self._scale = program.functions.key_scale(program.shape.config.head_dim)
        # Public tokens with blocks of their own.
        self.outside = self._public.tokens if self._public is not None and program.shape.split else 0

    @property
    def public_keys(self) -> Vector:
        """(tokens, H, d_h), of those outside the group."""
        assert self._public is not None
        return self._scale * by_token(self._public.keys)[: self.outside]

    def known(self) -> among.PlainKeys:
        return self._known

    @cached_property
    def _known(self) -> among.PlainKeys:
        """Keys of public tokens that share the group, and the predicted log-sums of each row."""
        heads, public = self._shape.heads, self._public
        group, shifts = np.zeros((2, heads.t, heads.count, heads.dim))
        if public is not None and not self._shape.split:
            group = self._scale * by_token(public.keys)
        for i in range(self._chunk.count):
            shift = ScoreShift(
                self._shape, self._blocks, self._predictor, self._functions, self._private + i, public
            )
            shifts[self._chunk.start + i] = self._scale * shift.weights().T
        return among.PlainKeys(group, shifts)

    def offsets(self, valid: Vector, pack: int) -> Vector:
        """Added to a ciphertext of scores: −(offset + slope·log(tokens)), or the bottom of the exponential's
        range where there is no token."""
        heads, f, p = self._shape.heads, self._functions, self._predictor
        log = np.log(self._first + 1.0 + np.arange(self._chunk.count))
        rows = np.tile(2.0**f.rounds * log, (heads.count, 1))  # of padded heads, whose scores are 0
        numbers = [heads.number(h) for h in range(heads.heads)]
        rows[numbers] = p.offset[:, None] + p.slope[:, None] * log
        bottom = f.exponential.low * f.shrink / f.scale
        return among.offsets(self._chunk, valid, pack, -rows / f.scale, bottom)
