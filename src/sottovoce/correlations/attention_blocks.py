"""Blocks of attention material: how they are made, what they hold, and the one use of each query.

A block of Q queries is multiplied with n slots: live ones, those made before and not yet used, and its own.
Product of a query and a slot after it are made too (they share ciphertexts with others) and never used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sottovoce.correlations.mask_products import MOST_ROWS, MaskProducts, products_bytes
from sottovoce.errors import ParameterError, ProtocolError
from sottovoce.net import Channel
from sottovoce.ring.primes import P_FIELD
from sottovoce.ring.sampling import Stream

Words = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class AttentionShape:
    """Public sizes of a model's attention."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads or self.group > MOST_ROWS:
            raise ParameterError(f"attention: {self.heads} heads on {self.kv_heads} key-value heads")

    @property
    def group(self) -> int:
        """Query heads of one key-value head."""
        return self.heads // self.kv_heads

    def block_size(self, tokens: int) -> int:
        """Queries of a block for at least `tokens`, if they fit: as many as cost the same ciphertexts."""
        rows = min(tokens * self.group, MOST_ROWS // self.group * self.group)
        return (1 << (rows - 1).bit_length()) // self.group

    def block_bytes(self, count: int, slots: int) -> int:
        """Bytes each way that a block of `count` queries on `slots` slots takes."""
        rows = self.group * count
        sizes = [(self.kv_heads, rows, self.head_dim, slots), (self.kv_heads, rows, slots, self.head_dim)]
        return self.layers * products_bytes(sizes)


@dataclass
class Material:
    """One layer of a block: shares (kv_heads, Q, group, …). What was handed out is wiped here."""

    queries: Words  # (…, head_dim): a
    scores: Words  # (…, n): a·b
    weights: Words  # (…, n): π, zero where a query must not look ahead
    mixes: Words  # (…, head_dim): Σ_j π_j·d_j
    asked: Flags  # (Q,)
    weighed: Flags  # (Q,)


@dataclass
class Block:
    """Counters from `first` on: masks of their slots (layers, Q, kv_heads, head_dim), their material."""

    first: int
    positions: Indices  # (n,) counters, ascending: the slots that the queries may look at
    keys: Words
    values: Words
    layers: list[Material]

    def __len__(self) -> int:
        return int(self.keys.shape[1])

    @property
    def end(self) -> int:
        """The first counter after the block."""
        return self.first + len(self)

    def questions(self, layer: int, counters: Indices) -> Questions | None:
        """Those of these counters that are the block's, if any."""
        inside = counters[(counters >= self.first) & (counters < self.end)]
        if not inside.size:
            return None
        return Questions(inside, self.positions, self.layers[layer], inside - self.first)


@dataclass(frozen=True)
class Questions:
    """Some queries of one layer and one block; each gives its material once."""

    counters: Indices  # (t,)
    positions: Indices  # (n,): slots of the block, the last axis of scores and weights
    _material: Material
    _rows: Indices

    def ask(self) -> tuple[Words, Words]:
        """Shares of the query masks (kv_heads, t·group, head_dim) and of a·b (kv_heads, t·group, n)."""
        return self._take(self._material.asked, self._material.queries, self._material.scores)

    def weigh(self) -> tuple[Words, Words]:
        """Shares of π (kv_heads, t·group, n) and of Σ π·d (kv_heads, t·group, head_dim)."""
        return self._take(self._material.weighed, self._material.weights, self._material.mixes)

    def _take(self, used: Flags, first: Words, second: Words) -> tuple[Words, Words]:
        if used[self._rows].any():
            raise ProtocolError("attention: the material of a query was to be used a second time")
        used[self._rows] = True
        return self._wipe(first), self._wipe(second)

    def _wipe(self, array: Words) -> Words:
        taken = array[:, self._rows]
        array[:, self._rows] = 0
        return taken.reshape(len(taken), -1, taken.shape[-1])


class AttentionMaker:
    """Makes blocks with the other party, in lockstep."""

    def __init__(self, channel: Channel, shape: AttentionShape) -> None:
        self.shape = shape
        self._ledger = channel.ledger
        self._products = MaskProducts(channel)
        self._stream = Stream(purpose=b"attention masks")

    def setup(self) -> None:
        """Exchange keys: one exchange of 43 KB each way. Without it, this happens with the first block."""
        self._products.keys()

    def slot_masks(self, count: int) -> tuple[Words, Words]:
        """Fresh shares of b and d for `count` slots, (layers, count, kv_heads, head_dim) each. No message."""
        shape = self.shape
        drawn = self._stream.uniform(P_FIELD, 2, shape.layers, count, shape.kv_heads, shape.head_dim)
        return drawn[0], drawn[1]

    def make(self, first: int, count: int, slots: Indices, keys: Words, values: Words) -> Block:
        """Counters `first` to `first + count` against earlier `slots` (n,), whose masks are given, and
        themselves.

        Two exchanges per layer, `AttentionShape.block_bytes`. Leaks nothing but the sizes.
        """
        own = self.slot_masks(count)
        positions = np.concatenate([slots, np.arange(first, first + count)])
        all_keys, all_values = (
            np.concatenate(pair, axis=1) for pair in zip((keys, values), own, strict=True)
        )
        ahead = positions[None, :] > np.arange(first, first + count)[:, None]
        return Block(first, positions, *own, self.materials(all_keys, all_values, ahead))

    def materials(self, keys: Words, values: Words, ahead: Flags) -> list[Material]:
        """Of layers whose slots have these masks, (layers, n, kv_heads, head_dim); ahead: (Q, n), slots that
        a query may not look at. Two exchanges per layer."""
        with self._ledger.operation("correlations"), self._ledger.operation("attention"):
            return [self._material(k, v, ahead) for k, v in zip(keys, values, strict=True)]

    def _material(self, keys: Words, values: Words, ahead: Flags) -> Material:
        """keys, values: (n, kv_heads, head_dim) of one layer; ahead: (Q, n)."""
        shape, (count, n) = self.shape, ahead.shape
        queries = self._stream.uniform(P_FIELD, shape.kv_heads, count * shape.group, shape.head_dim)
        weights = self._stream.uniform(P_FIELD, shape.kv_heads, count, shape.group, n)
        weights *= ~ahead[None, :, None, :]
        scores, mixes = self._products.multiply(
            [
                (queries, keys.transpose(1, 2, 0)),
                (weights.reshape(shape.kv_heads, -1, n), values.transpose(1, 0, 2)),
            ]
        )
        by_query = (shape.kv_heads, count, shape.group, -1)
        return Material(
            queries.reshape(by_query),
            scores.reshape(by_query),
            weights,
            mixes.reshape(by_query),
            np.zeros(count, np.bool_),
            np.zeros(count, np.bool_),
        )
