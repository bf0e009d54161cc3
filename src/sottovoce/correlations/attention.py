"""One-time material of the masked cache: masks of slots and queries, and shares of all their products.

Every token takes one *counter*. A counter is a slot (masks b of its key, d of its value, for each key-value
head) and a query (mask a of its query for each head, masks π of its probabilities for each head and slot).
The material of query i are shares of a_i·b_j for every slot j ≤ i that may be live then, and of Σ_j π_ij·d_j.
All of it is independent of the data. Counters only grow: a slot is written once, a query asked once, a
truncated token's counter is never used again; positions of tokens are somebody else's business.

Queries are made in blocks, `attention_blocks`, for the slots of this session, or come in segments,
`attention_segments`, which bring their slots and into which the live tokens move. Slots that die after their
block was made stay in its sums: their probabilities are zero. Source: protocols.md 6.2.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from sottovoce.correlations.attention_blocks import AttentionMaker, AttentionShape, Block, Questions
from sottovoce.correlations.attention_segments import Segment, SegmentInMaking
from sottovoce.errors import ParameterError, ProtocolError
from sottovoce.net import Channel
from sottovoce.ring.forks import generation, require_same_process

Words = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]

BLOCK = 64


class AttentionSource:
    """Material for all layers of one session at one party; both parties make the same calls in lockstep.

    layers, heads, kv_heads, head_dim: public sizes of the model. block: queries made at least at a time; more
    queries together cost fewer bytes each (`prepare_bytes`).
    """

    def __init__(
        self, channel: Channel, layers: int, heads: int, kv_heads: int, head_dim: int, block: int = BLOCK
    ) -> None:
        if block < 1:
            raise ParameterError(f"attention: material is made for one token or more at a time, not {block}")
        self.shape = AttentionShape(layers, heads, kv_heads, head_dim)
        self.block = block
        self._process = generation()
        # Called with the number of counters used so far, before the last of them is handed out.
        self.record: Callable[[int], None] | None = None
        self._maker = AttentionMaker(channel, self.shape)
        self._made = 0  # counters below have masks
        self._used = [0] * layers  # by layer: counters below were handed out
        self._recorded = 0
        self._live = [np.zeros(0, np.int64) for _ in range(layers)]
        self._blocks: list[Block] = []
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
        self._maker.setup()

    def prepare(self, tokens: int) -> None:
        """Make material until `tokens` are ready, in blocks. Two exchanges per layer and block.

        Both parties call it between two tokens. Live slots and all that were made before are included.
        """
        while self.ready < tokens:
            slots = self._slots()
            keys, values = (x[:, self._rows(slots)] for x in (self._keys, self._values))
            block = self._maker.make(self._made, self._block_size(tokens), slots, keys, values)
            self._hold(block.keys, block.values)
            self._blocks.append(block)

    @property
    def is_fresh(self) -> bool:
        """Whether no counter has a mask yet."""
        return not self._made

    def segment(self, room: int, queries: int) -> SegmentInMaking:
        """A segment for this or some later session; this one's counters are not touched."""
        return SegmentInMaking(self._maker, room, queries)

    def adopt(self, segment: Segment) -> None:
        """Go on with a segment that nobody else adopts, between two tokens: the live tokens move into its
        first slots, and whoever keeps their keys and values opens these again.

        Counters that were ready are spent. ParameterError if there is not room for all tokens.
        """
        self._slots()  # all layers must be at the same token
        count = self._live[0].size
        if count > segment.room:
            raise ParameterError(f"attention: {count} tokens do not fit a segment with {segment.room} slots")
        block = segment.placed(self._made)
        self._mark(block.first)
        self._blocks, self._held = [block], block.positions
        self._keys, self._values = segment.keys, segment.values
        self._live = [block.positions[:count] for _ in self._live]
        self._used = [block.first] * len(self._used)
        self._made = block.end

    def prepare_bytes(self, tokens: int) -> int:
        """Bytes each way of `prepare`, keys not counted."""
        total, ready, slots, count = 0, self.ready, self._slots().size, self._block_size(tokens)
        while ready < tokens:
            ready, slots = ready + count, slots + count
            total += self.shape.block_bytes(count, slots)
        return total

    def _block_size(self, tokens: int) -> int:
        return self.shape.block_size(max(self.block, tokens - self.ready))

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
                self._hold(*self._maker.slot_masks(end - self._made))
        self._mark(end)
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
        missing = mark - self._made
        if missing > 0:
            self._blocks.clear()
            self._made = mark
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
        rows = self._rows(counters)
        return self._keys[layer, rows], self._values[layer, rows]

    def _rows(self, counters: Indices) -> Indices:
        return np.searchsorted(self._held, counters)

    def _hold(self, keys: Words, values: Words) -> None:
        """Take up the next slots with their masks; forget slots and blocks that nothing needs any more."""
        # The last append may still ask, hence one block whose counters are all used stays.
        past = sum(block.end <= self.used for block in self._blocks)
        del self._blocks[: max(0, past - 1)]
        needed = [self._slots(), *(block.positions for block in self._blocks)]
        kept = np.unique(np.concatenate(needed))
        rows, count = self._rows(kept), keys.shape[1]
        self._keys = np.concatenate([self._keys[:, rows], keys], axis=1)
        self._values = np.concatenate([self._values[:, rows], values], axis=1)
        self._held = np.concatenate([kept, np.arange(self._made, self._made + count)])
        self._made += count

    def _mark(self, end: int) -> None:
        """Counters below `end` are about to be handed out."""
        require_same_process(self._process)
        if end > self._recorded:
            if self.record is not None:
                self.record(end)
            self._recorded = end

    def _no_masks(self, count: int) -> Words:
        shape = self.shape
        return np.zeros((shape.layers, count, shape.kv_heads, shape.head_dim), np.uint64)

    # --- queries

    def questions(self, layer: int, count: int) -> list[Questions]:
        """The queries of a layer's last `count` live tokens, block by block."""
        require_same_process(self._process)
        live = self._live[layer]
        if not 0 < count <= live.size:
            raise ParameterError(f"cache: {count} queries on {live.size} tokens")
        found = [block.questions(layer, live[-count:]) for block in self._blocks]
        parts = [part for part in found if part is not None]
        if sum(part.counters.size for part in parts) != count:
            raise ParameterError("cache: only recent tokens have a query left, and public ones have none")
        return parts
