"""Attention material that belongs to no conversation yet: it brings slots of its own.

A block made in the middle of a conversation is multiplied with the masks of that conversation's slots. A
*segment* is made for `room` slots with fresh masks, and for Q queries with a slot each. Whoever takes it up
moves the live tokens into the room: their keys and values are opened once more, under the new masks, which
costs 2·kv_heads·head_dim opened elements a token and layer where the segment itself costs hundreds of times
that. So segments are made ahead, by anybody, and lie in a pool; and slots of forgotten tokens stay behind.

Opening k − b and later k − b', with independent b and b', shows two independent uniform values: nothing. The
old masks, and queries that were left, are forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sottovoce.correlations.attention_blocks import (
    AttentionMaker,
    AttentionShape,
    Block,
    Material,
    Words,
)
from sottovoce.correlations.records import Record
from sottovoce.errors import ParameterError

_STORED = ("queries", "scores", "weights", "mixes")  # of `Material`, in its order


@dataclass
class Segment:
    """Masks of `room` slots and of those of its queries, (layers, room + Q, kv_heads, head_dim) each, and the
    material of every layer."""

    keys: Words
    values: Words
    layers: list[Material]

    @property
    def queries(self) -> int:
        """Q: tokens that can be appended and ask."""
        return int(self.layers[0].asked.size)

    @property
    def room(self) -> int:
        """Live tokens that can move in."""
        return int(self.keys.shape[1]) - self.queries

    def placed(self, first: int) -> Block:
        """As a block of a session in which the segment's first slot is counter `first`."""
        start, room = first + self.room, self.room
        positions = first + np.arange(self.keys.shape[1])
        return Block(start, positions, self.keys[:, room:], self.values[:, room:], self.layers)

    def to_record(self) -> Record:
        """One row of a pool on disk; only of a segment of which nothing was handed out."""
        arrays = [self.keys, self.values]
        for name in _STORED:
            arrays.append(np.stack([getattr(layer, name) for layer in self.layers]))
        return Record(tuple(array[None] for array in arrays), granule=1)

    @classmethod
    def from_record(cls, record: Record) -> Segment:
        """The inverse of `to_record`."""
        keys, values, *stored = (array[0] for array in record.arrays)
        count = stored[0].shape[2]
        layers = [
            Material(q, s, w, m, np.zeros(count, np.bool_), np.zeros(count, np.bool_))
            for q, s, w, m in zip(*stored, strict=True)
        ]
        return cls(keys, values, layers)


class SegmentInMaking:
    """A segment that is made a few layers at a time, so that others can use the channel in between.

    Both parties call `step` alike. Cost of a layer: two exchanges, `AttentionShape.block_bytes` of Q queries
    on room + Q slots divided by the layers. Leaks nothing but the sizes.
    """

    def __init__(self, maker: AttentionMaker, room: int, queries: int) -> None:
        if room < 0 or queries < 1:
            raise ParameterError(f"attention: no material for {queries} queries on {room} earlier slots")
        self._maker = maker
        self._keys, self._values = maker.slot_masks(room + queries)
        self._ahead = np.arange(room + queries)[None, :] > np.arange(room, room + queries)[:, None]
        self._done: list[Material] = []

    @property
    def done(self) -> int:
        """Layers that are finished."""
        return len(self._done)

    def step(self, layers: int) -> Segment | None:
        """Make that many more layers; the segment, after the last."""
        chosen = slice(self.done, self.done + layers)
        self._done += self._maker.materials(self._keys[chosen], self._values[chosen], self._ahead)
        if self.done < self._maker.shape.layers:
            return None
        return Segment(self._keys, self._values, self._done)


def layers_at_once(shape: AttentionShape, room: int, queries: int, most_bytes: int) -> int:
    """Layers of a segment that cost at most so many bytes each way; one in any case."""
    return max(1, most_bytes * shape.layers // shape.block_bytes(queries, room + queries))
