"""What each token of the vocabulary looks like in the first block: the server owns embedding and weights."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.attacks.candidates import rotated
from sottovoce.engines.scx import ops
from sottovoce.models import Model

Floats = npt.NDArray[Any]
_ROWS = 4096  # of the vocabulary, or of a table of distances, at a time
_SHORTLIST = 8


class Vocabulary:
    """Rows of the first block for every token. position: matters only to models with learned positions."""

    def __init__(self, model: Model, position: int = 0) -> None:
        self.model, self._position = model, position

    def at(self, position: int) -> Vocabulary:
        """The same at another position."""
        same = self.model.weights.positions is None or position == self._position
        return self if same else Vocabulary(self.model, position)

    @cached_property
    def embedded(self) -> Floats:
        positions = self.model.weights.positions
        x = self.model.weights.embedding
        return x if positions is None else x + positions[self._position]

    @cached_property
    def inputs(self) -> Floats:
        """(vocab, width): what the first block multiplies with its matrices."""
        w = self.model.weights.blocks[0]
        return np.asarray(ops.norm(self.embedded, w.norm1, w.norm1_bias, self.model.config))

    @cached_property
    def directions(self) -> Floats:
        """The same without their lengths."""
        return unit_rows(self.inputs)

    def _heads(self, name: str, heads: int) -> Floats:
        w = self.model.weights.blocks[0]
        y = ops.linear(self.inputs, getattr(w, name), getattr(w, name + "_bias"))
        return np.asarray(y).reshape(len(y), heads, self.model.config.head_dim)

    @cached_property
    def values(self) -> Floats:
        """(vocab, kv_heads, head_dim)."""
        return self._heads("v", self.model.config.kv_heads)

    def rotated(self, name: str, position: int) -> Floats:
        """(vocab, heads, head_dim): `queries` or `keys` of every token, were it at that position."""
        c = self.model.config
        return rotated(self._heads(name[0], c.heads if name == "queries" else c.kv_heads), c, position)

    @cached_property
    def sorted_values(self) -> Floats:
        return features_sorted(self.values)

    @cached_property
    def invariants(self) -> Floats:
        """(vocab, ·): what no permutation, rotation or reflection of a head's features changes."""
        c = self.model.config
        return gram_features(self._heads("q", c.heads), self._heads("k", c.kv_heads), self.values)


def features_sorted(x: Floats) -> Floats:
    """(T, heads, d) -> (T, heads·d), each head's features in ascending order."""
    return np.sort(x, axis=-1).reshape(len(x), -1)


def gram_features(q: Floats, k: Floats, v: Floats) -> Floats:
    """(T, 2·heads + 2·kv_heads): lengths of q, k, v in each head, and q·k of a token with itself."""
    own = np.einsum("thd,thd->th", q, np.repeat(k, q.shape[1] // k.shape[1], axis=1))
    return np.concatenate([np.linalg.norm(x, axis=-1) for x in (q, k, v)] + [own], axis=1)


_squares: dict[int, tuple[Floats, Floats]] = {}  # of the tables used last: the table itself, and its squares


def squares_of(table: Floats) -> Floats:
    """(V,) squared lengths of a table's rows. Attacks ask many times for few tables, which never change."""
    kept = _squares.get(id(table))
    if kept is None or kept[0] is not table:
        if len(_squares) > 3:
            _squares.clear()
        kept = table, np.einsum("vd,vd->v", table, table)
        _squares[id(table)] = kept
    return kept[1]


def nearest(rows: Floats, table: Floats, count: int = 1) -> npt.NDArray[np.int64]:
    """(T, count): the rows of the table that are nearest, nearest first; by Euclidean distance."""
    squares = squares_of(table)
    found = []
    for i in range(0, len(rows), 64):
        distances = squares - 2.0 * (rows[i : i + 64].astype(table.dtype, copy=False) @ table.T)
        if count == 1:
            found.append(distances.argmin(axis=1)[:, None])
            continue
        few = np.argpartition(distances, min(count, len(table) - 1), axis=1)[:, :count]
        order = np.argsort(np.take_along_axis(distances, few, axis=1), axis=1)
        found.append(np.take_along_axis(few, order, axis=1))
    return np.concatenate(found).astype(np.int64)


def nearest_l1(rows: Floats, table: Floats) -> npt.NDArray[np.int64]:
    """(T,): the nearest rows by the sum of absolute differences, among the nearest few by Euclidean
    distance."""
    few = nearest(rows, table, min(_SHORTLIST, len(table)))
    distances = np.abs(table[few] - rows[:, None, :]).sum(axis=-1)
    return np.asarray(np.take_along_axis(few, distances.argmin(axis=1)[:, None], axis=1)[:, 0])


def unit_rows(x: Floats) -> Floats:
    """Rows of length one."""
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-30))
