"""What is added to keys and scores of one step as plaintext: public tokens, predictions of log-sums, and
empty positions."""

from __future__ import annotations

import functools
from functools import partial

import numpy as np
import numpy.typing as npt

from sottovoce.engines.fhe.functions import Functions, Predictor
from sottovoce.engines.fhe.shape import Shape
from sottovoce.models.layers import rotate
from sottovoce.packing.slots import Blocks, Plain, Vector, constant
from sottovoce.packing.slots import attention as att

Array = npt.NDArray[np.float64]


def row_weights(shape: Shape, functions: Functions, layer: int, i: int, lengths: npt.ArrayLike) -> Array:
    """m of every head before inverse i, for rows of so many tokens: (H, rows). Rows of padded heads are flat.
    1 before the last inverse, which normalises."""
    heads, count = shape.heads, np.asarray(lengths, np.float64).reshape(-1)
    if i == functions.rounds:
        return np.ones((heads.count, len(count)))
    found = np.tile(1 / np.sqrt(count), (heads.count, 1))
    found[[heads.number(h) for h in range(heads.heads)]] = functions.blocks[layer].spread.weights(i, count)
    return found


class PublicTokens:
    """Keys and values of a public prefix in one layer. k, v: (tokens, kv_heads, head_dim) in the model's
    order. Rows are (d_h, H, tokens up to a multiple of t)."""

    def __init__(self, shape: Shape, k: Array, v: Array) -> None:
        c, heads = shape.config, shape.heads
        interleaved = c.rope is not None and c.rope.style == "interleaved"
        self.tokens, self._shape = len(k), shape
        flat = (x.reshape(len(x), -1).astype(np.float64) for x in (k, v))
        self.keys = self._rows(heads.key_columns(next(flat), interleaved))
        self.values = self._rows(heads.key_columns(next(flat)))

    def shared_values(self) -> Vector:
        """For a session whose public tokens share the one private group."""
        return self.values.reshape(-1)

    def value_lanes(self, blocks: Blocks) -> list[list[Plain]]:
        return [att.public_values(blocks, constant(self.values), z) for z in range(blocks.ciphertexts)]

    def _rows(self, features: Array) -> Array:
        heads = self._shape.heads
        rows = np.zeros((heads.width, -(-self.tokens // heads.t) * heads.t))
        rows[:, : self.tokens] = features.T
        return rows.reshape(heads.dim, heads.count, -1)


class ScoreShift:
    """For the step behind `public` + `private` tokens. Scores are in units of `functions.scale`."""

    def __init__(
        self,
        shape: Shape,
        blocks: Blocks,
        predictor: Predictor,
        functions: Functions,
        private: int,
        public: PublicTokens | None,
    ) -> None:
        self._shape, self._blocks, self._predictor, self._functions = shape, blocks, predictor, functions
        self._public, self._private = public, private
        self._before = private + (0 if public is None or not shape.split else public.tokens)

    def lane(self, m: int) -> Plain:
        """Added to lane m of the private keys: −w at every token, so that scores come out as q·(k − w), and
        the keys of public tokens that share the group."""
        return partial(self._lane, m)

    def public_lanes(self) -> list[list[Plain]]:
        """k − w of public tokens with blocks of their own, by ciphertext; empty without."""
        if self._public is None or not self._shape.split:
            return []
        rows = functools.cache(partial(self._public_rows, self._public))
        return [att.public_keys(self._blocks, rows, z) for z in range(self._blocks.ciphertexts)]

    def offsets(self, ciphertext: int) -> Plain:
        """Added to the scores: −(offset + slope·log(tokens)) of the head, and the bottom of the
        exponential's range at empty positions."""
        return partial(self._offsets, ciphertext)

    def weights(self) -> Array:
        """w = direct + rotated to the position, (d_h, H)."""
        heads, p, rope = self._shape.heads, self._predictor, self._shape.config.rope
        w = p.direct
        if rope is not None:
            w = w + rotate(p.rotated[None].astype(np.float32), rope, self._before)[0]
        interleaved = rope is not None and rope.style == "interleaved"
        columns = heads.query_columns(w.reshape(1, -1), interleaved)[0]
        return np.asarray(columns.reshape(heads.dim, heads.count))

    @property
    def _key_scale(self) -> float:
        return self._functions.key_scale(self._shape.config.head_dim)

    def _public_rows(self, public: PublicTokens) -> Array:
        live = np.arange(public.keys.shape[-1]) < public.tokens
        return np.asarray((public.keys - self.weights()[:, :, None] * live) * self._key_scale)

    def _lane(self, m: int) -> Vector:
        heads, b = self._shape.heads, np.arange(self._shape.heads.dim)
        token = (b % self._blocks.classes)[:, None] * heads.t + np.arange(heads.t)
        live = token <= self._private
        out = -np.roll(self.weights(), -m, axis=0)[:, :, None] * live[:, None, :]
        if self._public is not None and not self._shape.split:
            out = out + self._public.keys
        return (out * self._key_scale).reshape(-1)

    def _offsets(self, ciphertext: int) -> Vector:
        heads, f, p = self._shape.heads, self._functions, self._predictor
        log = np.log(self._before + 1.0)
        shift = np.full(heads.count, 2.0**f.rounds * log)  # of padded heads, whose scores are 0
        numbers = [heads.number(h) for h in range(heads.heads)]
        shift[numbers] = p.offset + p.slope * log
        at = (np.arange(heads.n) // heads.t) % heads.count
        bottom = f.exponential.low * f.shrink
        public = 0 if self._public is None or not self._shape.split else self._public.tokens
        live = self._blocks.positions(self._private + 1, public)[ciphertext]
        return np.where(live, -shift[at], bottom) / f.scale
