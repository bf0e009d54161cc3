"""One-time material of the masked cache: masks of slots and queries, and shares of all their products.

Every token takes one *counter*. A counter is a slot (masks b of its key, d of its value, for each key-value
head) and a query (mask a of its query for each head, masks π of its probabilities for each head and slot).
The material of query i are shares of a_i·b_j for every slot j ≤ i that may be live then, and of Σ_j π_ij·d_j.
All of it is independent of the data. Counters only grow: a slot is written once, a query asked once, a
truncated token's counter is never used again; positions of tokens are somebody else's business.

Queries are made in blocks: a block of Q counters is multiplied with all live slots, those made before and not
yet used, and its own. Slots that die later stay in the sums of the block: their probabilities are zero.
Source: protocols.md 6.2; products by `mask_products`.
"""

from __future__ import annotations

from collections.abc import Callable
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

BLOCK = 64


@dataclass
class _Material:
    """One layer of a block: (kv_heads, Q, group, …) shares. What was handed out is wiped here."""

    queries: Words  # (…, head_dim): a
    scores: Words  # (…, n): a·b
    weights: Words  # (…, n): π, zero where a query must not look ahead
    mixes: Words  # (…, head_dim): Σ_j π_j·d_j
    asked: npt.NDArray[np.bool_]  # (Q,)
    weighed: npt.NDArray[np.bool_]  # (Q,)


@dataclass
class _Block:
    """Queries `first` to `first + len`, and the slots that they may look at."""

    first: int
    count: int
    positions: Indices  # (n,) counters, ascending
    layers: list[_Material]


@dataclass(frozen=True)
class Questions:
    """Some queries of one layer and one block; each gives its material once."""

    counters: Indices  # (t,)
    positions: Indices  # (n,): slots of the block, the last axis of scores and weights
    _material: _Material
    _rows: Indices

    def ask(self) -> tuple[Words, Words]:
        """Shares of the query masks (kv_heads, t·group, head_dim) and of a·b (kv_heads, t·group, n)."""
        return self._take(self._material.asked, self._material.queries, self._material.scores)

    def weigh(self) -> tuple[Words, Words]:
        """Shares of π (kv_heads, t·group, n) and of Σ π·d (kv_heads, t·group, head_dim)."""
        return self._take(self._material.weighed, self._material.weights, self._material.mixes)

    def _take(self, used: npt.NDArray[np.bool_], first: Words, second: Words) -> tuple[Words, Words]:
        if used[self._rows].any():
            raise ProtocolError("attention: the material of a query was to be used a second time")
        used[self._rows] = True
        taken = []
        for array in (first, second):
            part = array[:, self._rows]
            taken.append(part.reshape(len(part), -1, part.shape[-1]))
            array[:, self._rows] = 0
        return taken[0], taken[1]


class AttentionSource:
    """Material for all layers of one session at one party; both parties make the same calls in lockstep.

    layers, heads, kv_heads, head_dim: public sizes of the model. block: queries made at least at a time; more
    queries together cost fewer bytes each (see `prepare_bytes`).
    """

    def __init__(
        self, channel: Channel, layers: int, heads: int, kv_heads: int, head_dim: int, block: int = BLOCK
    ) -> None:
        if heads % kv_heads or heads // kv_heads > MOST_ROWS or block < 1:
            raise ParameterError(
                f"attention: {heads} heads on {kv_heads} key-value heads in blocks of {block}"
            )
        self.layers, self.heads, self.kv_heads, self.head_dim = layers, heads, kv_heads, head_dim
        self.block = block
        # Called with the number of counters used so far before the last of them is handed out.
        self.record: Callable[[int], None] | None = None
        self._channel = channel
        self._products = MaskProducts(channel)
        self._stream = Stream(purpose=b"attention masks")
        self._made = 0  # counters below have masks
        self._used = [0] * layers  # by layer: counters below were handed out
        self._recorded = 0
        self._live = [np.zeros(0, np.int64) for _ in range(layers)]
        self._blocks: list[_Block] = []
        self._held = np.zeros(0, np.int64)  # counters whose slot masks are kept
        self._keys, self._values = self._no_masks(0), self._no_masks(0)

    @property
    def used(self) -> int:
        """Counters handed out so far: what a session must remember, and never go back from."""
        return max(self._used)

    @property
    def ready(self) -> int:
        """Tokens that can be appended before more material is made."""
        return self._made - self.used

    def live(self, layer: int) -> Indices:
        """The counters of a layer's live tokens, in their order."""
        return self._live[layer]

    # --- making

    def setup(self) -> None:
        """Exchange keys: one exchange of 43 KB each way. Without it, this happens with the first block."""
        self._products.keys()

    def prepare(self, tokens: int) -> None:
        """Make material until `tokens` are ready, in blocks. Two exchanges per layer and block.

        Both parties call it between two tokens. Live slots and all that were made before are included.
        """
        while self.ready < tokens:
            self._make(tokens - self.ready)

    def prepare_bytes(self, tokens: int) -> int:
        """Bytes each way of `prepare`, keys not counted."""
        total, ready, slots = 0, self.ready, len(self._slots())
        while ready < tokens:
            count = self._block_size(tokens - ready)
            ready, slots = ready + count, slots + count
            total += self.layers * products_bytes(self._shapes(count, slots))
        return total

    def _make(self, tokens: int) -> None:
        count = self._block_size(tokens)
        positions = np.concatenate([self._slots(), np.arange(self._made, self._made + count)])
        self._hold(count)
        block = _Block(self._made, count, positions, [])
        # Queries may be of the last append, hence of the block before this one, but not older.
        self._blocks = [*self._blocks[-1:], block]
        ledger = self._channel.ledger
        with ledger.operation("correlations"), ledger.operation("attention"):
            for layer in range(self.layers):
                block.layers.append(self._material(layer, block))
        self._made += count

    def _material(self, layer: int, block: _Block) -> _Material:
        group, n, q = self.heads // self.kv_heads, block.positions.size, block.count
        queries = self._stream.uniform(P_FIELD, self.kv_heads, q * group, self.head_dim)
        weights = self._stream.uniform(P_FIELD, self.kv_heads, q, group, n)
        counters = np.arange(block.first, block.first + q)
        weights *= (block.positions[None, :] <= counters[:, None])[None, :, None, :]
        flat = weights.reshape(self.kv_heads, q * group, n)
        keys, values = self.masks(layer, block.positions)
        scores, mixes = self._products.multiply(
            [(queries, keys.transpose(1, 2, 0)), (flat, values.transpose(1, 0, 2))]
        )
        shape = (self.kv_heads, q, group, -1)
        return _Material(
            queries.reshape(shape),
            np.ascontiguousarray(scores).reshape(shape),
            weights,
            np.ascontiguousarray(mixes).reshape(shape),
            np.zeros(q, np.bool_),
            np.zeros(q, np.bool_),
        )

    def _block_size(self, tokens: int) -> int:
        """At least the block, at least what is needed, as many as the power of two holds that costs alike."""
        group = self.heads // self.kv_heads
        rows = min(max(tokens, self.block) * group, MOST_ROWS // group * group)
        return (1 << (rows - 1).bit_length()) // group

    def _shapes(self, count: int, slots: int) -> list[tuple[int, int, int, int]]:
        rows = self.heads // self.kv_heads * count
        return [
            (self.kv_heads, rows, self.head_dim, slots),
            (self.kv_heads, rows, slots, self.head_dim),
        ]

    def _slots(self) -> Indices:
        """What a new query may look at: live slots, and those that earlier blocks will fill."""
        live = self._live[0]
        if len(set(self._used)) > 1 or any(not np.array_equal(live, other) for other in self._live):
            raise ProtocolError("attention: material is made between tokens, when all layers hold the same")
        return np.concatenate([live, np.arange(self._used[0], self._made)])

    # --- slots

    def append(self, layer: int, count: int, queries: bool = True) -> tuple[Words, Words]:
        """The next `count` counters of a layer: shares of their slot masks, (count, kv_heads, head_dim) each.

        Makes a block when it runs dry, except without queries: tokens that ask nothing take slots only.
        """
        end = self._used[layer] + count
        if end > self._made:
            if queries:
                self.prepare(count)
            else:
                self._slots()  # all layers must be at the same token
                missing = end - self._made
                self._hold(missing)
                self._made += missing
        if end > self._recorded and self.record is not None:
            self.record(end)
        self._recorded = max(self._recorded, end)
        new = np.arange(self._used[layer], end)
        self._used[layer] = end
        self._live[layer] = np.concatenate([self._live[layer], new])
        return self.masks(layer, new)

    def truncate(self, layer: int, length: int) -> None:
        """Keep the first `length` live tokens of a layer; the counters of the others are spent."""
        if not 0 <= length <= self._live[layer].size:
            raise ParameterError(f"cache: cannot truncate {self._live[layer].size} tokens to {length}")
        self._live[layer] = self._live[layer][:length]

    def burn(self, mark: int) -> None:
        """Never hand out a counter below `mark`: after a lost connection, the larger of both parties'."""
        self._made = max(self._made, mark)
        self._used = [max(used, mark) for used in self._used]
        self._recorded = max(self._recorded, mark)

    def restore(self, layer: int, live: Indices, used: int, keys: Words, values: Words) -> None:
        """Slots of a saved cache. Material that was ready is lost, its counters are spent."""
        self.burn(max(used, self._made))
        self._blocks.clear()
        if not np.array_equal(self._held, live):
            self._held = live.copy()
            self._keys, self._values = self._no_masks(live.size), self._no_masks(live.size)
        self._keys[layer], self._values[layer] = keys, values
        self._live[layer] = live.copy()

    def masks(self, layer: int, counters: Indices) -> tuple[Words, Words]:
        """This party's shares of b and d of slots: (n, kv_heads, head_dim) each."""
        rows = np.searchsorted(self._held, counters)
        return self._keys[layer, rows], self._values[layer, rows]

    def _hold(self, count: int) -> None:
        """Draw the slot masks of the next `count` counters; forget those that nothing refers to any more."""
        needed = [self._slots(), *(block.positions for block in self._blocks[-1:])]
        kept = np.unique(np.concatenate(needed)).astype(np.int64)
        rows = np.searchsorted(self._held, kept)
        fresh = self._stream.uniform(P_FIELD, 2, self.layers, count, self.kv_heads, self.head_dim)
        self._keys = np.concatenate([self._keys[:, rows], fresh[0]], axis=1)
        self._values = np.concatenate([self._values[:, rows], fresh[1]], axis=1)
        self._held = np.concatenate([kept, np.arange(self._made, self._made + count)])

    def _no_masks(self, count: int) -> Words:
        return np.zeros((self.layers, count, self.kv_heads, self.head_dim), np.uint64)

    # --- queries

    def questions(self, layer: int, count: int) -> list[Questions]:
        """The queries of a layer's last `count` live tokens, block by block."""
        live = self._live[layer]
        if not 0 < count <= live.size:
            raise ParameterError(f"cache: {count} queries on {live.size} tokens")
        counters, found = live[-count:], []
        for block in self._blocks:
            inside = counters[(counters >= block.first) & (counters < block.first + block.count)]
            if inside.size:
                material = block.layers[layer]
                found.append(Questions(inside, block.positions, material, inside - block.first))
        if sum(part.counters.size for part in found) != count:
            raise ParameterError("cache: only recent tokens have a query left, and public ones have none")
        return found
