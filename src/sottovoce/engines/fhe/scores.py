"""What is added to keys and scores of one step as plaintext: predictions of log-sums, and empty positions."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt

from sottovoce.engines.fhe.functions import Functions, Predictor
from sottovoce.engines.fhe.shape import Shape
from sottovoce.models.layers import rotate
from sottovoce.packing.slots import Plain, Vector
from sottovoce.packing.slots import attention as att

Array = npt.NDArray[np.float64]


class PublicKeys:
    """Keys and values of a public prefix, laid out like those of private tokens. k, v: (tokens, kv_heads,
    head_dim) in the model's order."""

    def __init__(self, shape: Shape, k: Array, v: Array) -> None:
        c, heads = shape.config, shape.heads
        interleaved = c.rope is not None and c.rope.style == "interleaved"
        rows = len(k)
        self.tokens = rows
        self.keys = _spread(shape, heads.key_columns(k.reshape(rows, -1).astype(np.float64), interleaved))
        columns = heads.key_columns(v.reshape(rows, -1).astype(np.float64))
        self._values = _spread(shape, columns)

    def values(self) -> Vector:
        return self._values


class ScoreShift:
    """For the step at `position` (tokens before it). Scores are in units of `functions.scale`."""

    def __init__(self, shape: Shape, predictor: Predictor, functions: Functions, position: int) -> None:
        self._shape, self._predictor, self._functions = shape, predictor, functions
        self._position = position

    def keys(self, group: int, public: PublicKeys | None) -> Plain:
        """Added to a group of keys: −w at every token in it, so that scores come out as q·(k − w), and the
        keys of public tokens."""
        return partial(self._keys, group, public)

    def _keys(self, group: int, public: PublicKeys | None) -> Vector:
        heads, tokens = self._shape.heads, self._position + 1
        filled = min(max(tokens - group * heads.t, 0), heads.t)
        out = _spread(self._shape, np.tile(-self.weights(), (filled, 1)))
        out = out if public is None else out + public.keys
        return out * self._functions.key_scale(self._shape.config.head_dim)

    def weights(self) -> Array:
        """w = direct + rotated to the position, (width,) in the order of the heads."""
        p, rope = self._predictor, self._shape.config.rope
        w = p.direct
        if rope is not None:
            w = w + rotate(p.rotated[None].astype(np.float32), rope, self._position)[0]
        interleaved = rope is not None and rope.style == "interleaved"
        return np.asarray(self._shape.heads.query_columns(w.reshape(1, -1), interleaved)[0])

    def offsets(self) -> Vector:
        """Added to the scores: −(offset + slope·log(tokens)) of the head, and the bottom of the
        exponential's range at empty positions."""
        heads, f, p = self._shape.heads, self._functions, self._predictor
        log = np.log(self._position + 1.0)
        shift = np.full(heads.count, log)  # of padded heads, whose scores are 0
        numbers = [heads.number(h) for h in range(heads.heads)]
        shift[numbers] = p.offset + p.slope * log
        at = (np.arange(heads.n) // heads.t) % heads.count
        bottom = f.exponential.low * f.shrink
        return (empty_or(self._shape, self._position + 1, -shift[at], bottom)) / f.scale


def empty_or(shape: Shape, tokens: int, filled: Vector, value: float) -> Vector:
    """`filled` at positions that hold a token, `value` at the others."""
    gaps = att.empty(shape.heads, tokens, 1.0, shape.single)
    return np.where(gaps > 0, value, filled)


def _spread(shape: Shape, rows: Array) -> Vector:
    """Row r of (tokens, width): feature f at slot f·t + r."""
    out = np.zeros((shape.heads.width, shape.heads.t))
    out[:, : len(rows)] = rows.T
    return out.reshape(-1)
