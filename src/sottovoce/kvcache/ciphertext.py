"""The encrypted cache: keys and values stay at the server as ciphertexts under the client's key, across
tokens.

Append: the client sends a fresh encryption of its shares at the new slots, the server adds its own shares
as plaintext and adds both to the block. Scores: the client sends its share of the query, repeated for every
token of a block; the server adds its share, multiplies ciphertext by ciphertext, sums over the groups of
dimensions, relinearises once per block and returns the products masked (recipe Z); both parties sum over
dimensions on their shares. Mixing is the same with probabilities, summed over blocks and relinearised once
per group. No rotation anywhere.

Noise: products of a fresh query with a sum of appends are at 56 to 59 bits of the 62 that exact rounding
allows, and grow by half a bit when appends double; `refresh` re-encrypts through the masked return when
that, or dead slots, ask for it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import numpy.typing as npt

from sottovoce.bgv import Ciphertext, noise, stack
from sottovoce.bgv.recipe_z import NOISE_LIMIT as RESULT_NOISE
from sottovoce.errors import CorruptFileError, ParameterError
from sottovoce.kvcache.interface import KVCache, Signed, Words, visible
from sottovoce.kvcache.layout import CacheLayout, best_groups, token_ciphertexts
from sottovoce.kvcache.saved import pack_table, unpack_table
from sottovoce.kvcache.slots import SlotTable
from sottovoce.kvcache.store import Store
from sottovoce.mpc.field import from_signed
from sottovoce.net import Role
from sottovoce.packing import DataSide, ModelSide, Side, give_back_bytes, upload_bytes

EXPECTED_CONTEXT = 96  # tokens for which the number of groups is chosen by default
_RELINEARISED_AT_ONCE = 8


class CiphertextCache(KVCache):
    """One layer's cache at one party. Both parties make the same calls in lockstep; `side` says which one
    this is.

    Rounds and bytes: append 1 message of `append_bytes`, scores and mix 2 messages of `scores_bytes`,
    `mix_bytes`. Leaks nothing beyond the numbers of tokens, which both parties know.
    """

    def __init__(
        self, side: Side, heads: int, kv_heads: int, head_dim: int, groups: int | None = None
    ) -> None:
        self.side = side
        self.adaptive = groups is None
        degree = side.parameters.degree
        chosen = best_groups(heads, head_dim, degree, EXPECTED_CONTEXT) if groups is None else groups
        self.layout = CacheLayout(heads, kv_heads, head_dim, degree, chosen)
        self.noise_limit = RESULT_NOISE  # lower it to refresh earlier, at both parties alike
        self._restart()

    def __len__(self) -> int:
        return len(self.table)

    # --- tokens in
    # -------------------------------------------------------------------------------------------

    def append_public(self, count: int, k: Signed | None, v: Signed | None) -> None:
        if not self.table.used:
            self.layout = self._layout_for(count)
            self._restart()
        slots = self.table.append(count)
        if isinstance(self.side, DataSide):
            return
        if k is None or v is None or k.shape != (count, self.layout.kv_heads, self.layout.head_dim):
            raise ParameterError("cache: the server must give keys and values of every public token")
        p = self.side.parameters.plaintext
        self._store(slots, from_signed(k, p), from_signed(v, p), None)

    def append(self, k: Words, v: Words) -> None:
        """One message, `append_bytes(t)`; may first refresh, when half of a cache of several blocks is
        dead."""
        expected = (len(k), self.layout.kv_heads, self.layout.head_dim)
        if k.shape != expected or v.shape != expected:
            raise ParameterError(f"cache: shares of shape {k.shape} and {v.shape}, expected {expected}")
        if not self.table.used:
            self.layout = self._layout_for(len(k))
            self._restart()
        elif self.needs_refresh:
            self.refresh()
        self._append(k, v)

    def truncate(self, length: int) -> None:
        self.table.truncate(length)

    # --- products
    # --------------------------------------------------------------------------------------------

    def scores(self, q: Words) -> Words:
        layout, p = self.layout, self.side.parameters.plaintext
        pairs = self._pairs(len(q))
        slots = np.concatenate([layout.query(row) for row in q])
        if isinstance(self.side, DataSide):
            self.side.upload(slots)
            shares = self.side.take_back(len(pairs))
        else:
            queries = self._joined(slots)
            products = (self._score(queries, t, block) for t, block, _, _ in pairs)
            shares = self.side.give_back(self._relinearised(products, len(pairs)))
        result = np.zeros((len(q), layout.heads, len(self)), dtype=np.uint64)
        for (t, _, tokens, places), row in zip(pairs, shares, strict=True):
            result[t][:, tokens] = layout.scores(row, p)[:, places]
        return result

    def mix(self, p: Words) -> Words:
        layout = self.layout
        pairs = self._pairs(len(p))
        slots = np.stack([self._probabilities(p[t], tokens, places) for t, _, tokens, places in pairs])
        if isinstance(self.side, DataSide):
            self.side.upload(slots)
            shares = self.side.take_back(len(p) * layout.groups)
        else:
            weights = self._joined(slots)
            used = [[(i, pair[1]) for i, pair in enumerate(pairs) if pair[0] == t] for t in range(len(p))]
            products = (self._mixed(weights, row, group) for row in used for group in range(layout.groups))
            shares = self.side.give_back(self._relinearised(products, len(p) * layout.groups))
        return layout.mixed(
            shares.reshape(len(p), layout.groups, layout.degree), self.side.parameters.plaintext
        )

    # --- upkeep
    # ----------------------------------------------------------------------------------------------

    @property
    def needs_refresh(self) -> bool:
        """Whether dead slots, the layout or noise ask for `refresh` before the next append: alike at both
        parties."""
        dead = self.table.dead
        wasteful = dead >= self.layout.block_tokens and 2 * dead >= self.table.used
        return wasteful or self._outgrown or self.product_noise(self.table.used + 1) > self.noise_limit

    def product_noise(self, slots: int) -> float:
        """Bound, from public numbers, on the noise of scores and mixed values once `slots` slots are in use.

        A slot is written once, so a block is at most the sum of block_tokens fresh appends, whatever happens.
        """
        parameters, layout = self.side.parameters, self.layout
        appends = min(slots, layout.block_tokens)
        block = noise.add(noise.FRESH + 0.5 * math.log2(appends), 0.5 * math.log2(appends))
        one = noise.tensor(parameters, noise.add_plain(noise.FRESH), block)
        terms = max(layout.groups, layout.blocks(slots))
        return noise.add(one + 0.5 * math.log2(terms), noise.key_switch(parameters, parameters.limbs))

    def refresh(self) -> None:
        """Two messages: all ciphertexts back masked, all live tokens up again; `refresh_bytes`. Drops dead
        slots."""
        live, layout = self.table.live, self.layout
        blocks = layout.blocks(self.table.used)
        count = 2 * layout.groups * blocks
        if count:
            shares = self._returned(count).reshape(2, blocks, layout.groups, layout.degree)
            k, v = (layout.gather(part, live) for part in shares)
        self.layout = self._layout_for(live.size)
        self._restart()
        if live.size:
            self._append(k, v)

    @property
    def stores(self) -> tuple[Store, Store]:
        """The server's ciphertexts of keys and of values; empty at the client."""
        return self._keys, self._values

    def table_bytes(self) -> bytes:
        """Layout and slot table, which both parties have."""
        return pack_table(self.layout, self.table, Role.SERVER)

    def adopt_table(self, data: bytes | memoryview, length: int) -> None:
        """Start over with a table of `table_bytes` and its first `length` tokens; `stores` are empty then."""
        layout, table, rest = unpack_table(bytes(data), self.layout, self.adaptive, Role.SERVER)
        if rest or length > len(table):
            raise CorruptFileError("a saved slot table does not have all the tokens that it announces")
        self.layout = layout
        self._restart()
        self.table = table
        self.table.truncate(length)

    def save(self) -> bytes:
        head = pack_table(self.layout, self.table, self.side.channel.role)
        if isinstance(self.side, DataSide):
            return head
        stores = [store.to_bytes() for store in (self._keys, self._values)]
        return head + struct.pack("<QQ", *map(len, stores)) + b"".join(stores)

    def load(self, data: bytes) -> None:
        role = self.side.channel.role
        layout, table, rest = unpack_table(data, self.layout, self.adaptive, role)
        if isinstance(self.side, DataSide):
            if rest:
                raise CorruptFileError("a saved cache has bytes after its end")
            self.layout, self.table = layout, table
            return
        if len(rest) < 16 or len(rest) != 16 + sum(struct.unpack_from("<QQ", rest)):
            raise CorruptFileError("a saved cache is truncated")
        split = 16 + struct.unpack_from("<QQ", rest)[0]
        parameters, groups = self.side.parameters, layout.groups
        keys = Store.from_bytes(parameters, groups, rest[16:split])
        values = Store.from_bytes(parameters, groups, rest[split:])
        if len(keys) != layout.blocks(table.used) or len(values) != len(keys):
            raise CorruptFileError("a saved cache has another number of blocks than its tokens need")
        self.layout, self.table, self._keys, self._values = layout, table, keys, values

    # --- cost
    # ------------------------------------------------------------------------------------------------

    def append_bytes(self, tokens: int) -> int:
        """Bytes up of the next `append` of this many tokens, if it does not refresh."""
        layout = self.layout if self.table.used else self._layout_for(tokens)
        first, last = self.table.used, self.table.used + tokens - 1
        blocks = last // layout.block_tokens - first // layout.block_tokens + 1
        return upload_bytes(self.side.parameters, 2 * layout.groups * blocks)

    def scores_bytes(self, tokens: int) -> tuple[int, int]:
        """Bytes (up, down) of `scores` for the last `tokens` tokens."""
        parameters, count = self.side.parameters, len(self._pairs(tokens))
        return upload_bytes(parameters, tokens * self.layout.groups), give_back_bytes(parameters, count)

    def mix_bytes(self, tokens: int) -> tuple[int, int]:
        """Bytes (up, down) of `mix` for the last `tokens` tokens."""
        parameters, count = self.side.parameters, len(self._pairs(tokens))
        return upload_bytes(parameters, count), give_back_bytes(parameters, tokens * self.layout.groups)

    def refresh_bytes(self) -> tuple[int, int]:
        """Bytes (up, down) of `refresh`."""
        parameters, old, new = self.side.parameters, self.layout, self._layout_for(len(self))
        up = upload_bytes(parameters, 2 * new.groups * new.blocks(len(self))) if len(self) else 0
        return up, give_back_bytes(parameters, 2 * old.groups * old.blocks(self.table.used))

    # --- inside
    # ----------------------------------------------------------------------------------------------

    def _restart(self) -> None:
        self.table = SlotTable()
        self._keys = Store(self.side.parameters, self.layout.groups)
        self._values = Store(self.side.parameters, self.layout.groups)

    def _layout_for(self, tokens: int) -> CacheLayout:
        """The layout to start over with, for a context that goes on growing from this many tokens."""
        if not self.adaptive:
            return self.layout
        old, expected = self.layout, max(EXPECTED_CONTEXT, tokens + tokens // 2)
        return replace(old, groups=best_groups(old.heads, old.head_dim, old.degree, expected))

    @property
    def _outgrown(self) -> bool:
        """Whether another number of groups would save a quarter of the ciphertexts of every further token."""
        new = self._layout_for(len(self))
        shape = (new.heads, new.head_dim, new.degree)
        now = token_ciphertexts(*shape, self.layout.groups, len(self))
        return 4 * token_ciphertexts(*shape, new.groups, len(self)) <= 3 * now

    def _append(self, k: Words, v: Words) -> None:
        slots = self.table.append(len(k))
        if isinstance(self.side, DataSide):
            self.side.upload(np.concatenate([part for _, part in self._placed(slots, k, v)]))
            return
        sent = self.side.download(2 * self.layout.groups * len(self._parts(slots)))
        self._store(slots, k, v, sent)

    def _parts(self, slots: npt.NDArray[np.int64]) -> list[int]:
        """Blocks that these slots touch."""
        return [int(block) for block in np.unique(slots // self.layout.block_tokens)]

    def _placed(self, slots: npt.NDArray[np.int64], k: Words, v: Words) -> Iterator[tuple[int, Words]]:
        """For each block touched: its number and (2 G, N), keys then values at their places."""
        size = self.layout.block_tokens
        for block in self._parts(slots):
            inside = slots // size == block
            places = slots[inside] % size
            yield block, np.concatenate([self.layout.keys(x[inside], places) for x in (k, v)])

    def _store(self, slots: npt.NDArray[np.int64], k: Words, v: Words, sent: Ciphertext | None) -> None:
        """Add shares, and the client's encrypted ones if there are any, to the blocks."""
        assert isinstance(self.side, ModelSide)
        groups = self.layout.groups
        for i, (block, part) in enumerate(self._placed(slots, k, v)):
            plain = self.side.encoder.encode_ntt(part)
            fresh = None if sent is None else sent[2 * groups * i : 2 * groups * (i + 1)]
            self._keys.add(block, None if fresh is None else fresh[:groups], plain[:groups])
            self._values.add(block, None if fresh is None else fresh[groups:], plain[groups:])

    def _pairs(self, queries: int) -> list[tuple[int, int, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """(query, block, visible tokens of the block, their places), query by query."""
        if not 0 < queries <= len(self):
            raise ParameterError(f"cache: {queries} queries on {len(self)} tokens")
        return [
            (t, *part)
            for t, count in enumerate(visible(len(self), queries))
            for part in self.table.blocks(count, self.layout.block_tokens)
        ]

    def _joined(self, slots: Words) -> Ciphertext:
        """The server's half of an operand: the client's ciphertexts with the own share added."""
        assert isinstance(self.side, ModelSide)
        sent = self.side.download(len(slots))
        return self.side.evaluator.add_plain(sent, self.side.encoder.encode_ntt(slots))

    def _score(self, queries: Ciphertext, t: int, block: int) -> Ciphertext:
        assert isinstance(self.side, ModelSide)
        groups = self.layout.groups
        query = queries[t * groups : (t + 1) * groups]
        return self.side.evaluator.tensor_accumulate(query, self._keys.block(block))

    def _mixed(self, weights: Ciphertext, blocks: list[tuple[int, int]], group: int) -> Ciphertext:
        assert isinstance(self.side, ModelSide)
        first = blocks[0][0]
        values = self._values.group(group, [block for _, block in blocks])
        return self.side.evaluator.tensor_accumulate(weights[first : first + len(blocks)], values)

    def _relinearised(self, products: Iterator[Ciphertext], count: int) -> Ciphertext:
        """A batch of `count` products, each of three components, with two: a few at a time."""
        assert isinstance(self.side, ModelSide)
        parameters, evaluator = self.side.parameters, self.side.evaluator
        results = np.empty((count, 2, parameters.limbs, parameters.degree), dtype=np.uint64)
        bits = 0.0
        for first in range(0, count, _RELINEARISED_AT_ONCE):
            batch = evaluator.relinearize(stack(list(islice(products, _RELINEARISED_AT_ONCE))))
            results[first : first + len(batch)] = batch.data
            bits = max(bits, batch.noise)
        return Ciphertext(parameters, results, bits)

    def _probabilities(self, p: Words, tokens: npt.NDArray[np.int64], places: npt.NDArray[np.int64]) -> Words:
        """p (H, n) of one query -> the slots (N,) of one block, zero at places that it does not see."""
        block = np.zeros((self.layout.heads, self.layout.block_tokens), dtype=np.uint64)
        block[:, places] = p[:, tokens]
        return self.layout.probabilities(block)

    def _returned(self, count: int) -> Words:
        """Shares (count, N) of the slots of all ciphertexts, keys first."""
        if isinstance(self.side, DataSide):
            return self.side.take_back(count)
        keys, values = self._keys.all(), self._values.all()
        both = np.concatenate([keys.data, values.data])
        return self.side.give_back(Ciphertext(self.side.parameters, both, max(keys.noise, values.noise)))
