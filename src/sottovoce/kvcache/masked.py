"""The masked cache: keys and values lie open under one-time masks, attention is local arithmetic.

Both parties hold k̂ = k − b and v̂ = v − d of every token, the masks are shared. Of a query q both get
q̂ = q − a, and q·k = q̂·k̂ + a·k̂ + q̂·b + a·b: with shares of a·b made ahead (`correlations.attention`) each
party computes its share alone. Mixing is the same with a mask π for every probability. One opening per
layer for new keys, values and queries together, one for the probabilities, 43 bits an element each way, and
no cryptography.

What is opened is uniform: every mask covers one value, once. That is why a slot whose token was truncated is
never written again, (k − b) − (k' − b) would be k − k', and why a query asks once. Source: protocols.md 6.2.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sottovoce.correlations.attention import AttentionSource
from sottovoce.correlations.attention_blocks import Questions
from sottovoce.correlations.mask_products import matmul
from sottovoce.errors import CorruptFileError, IntegrityError, ParameterError
from sottovoce.kvcache.interface import KVCache, Signed, Words
from sottovoce.kvcache.opened import OpenedTokens
from sottovoce.mpc import field as arithmetic
from sottovoce.net import Channel, Role, exchange_field, pack_bits, unpack_bits
from sottovoce.net.codec import packed_size
from sottovoce.ring.primes import P_FIELD

Indices = npt.NDArray[np.int64]

_HEADER = struct.Struct("<4sBBHHHQQ")
_MAGIC, _VERSION = b"SVKM", 1
_WIDTH = 43


@dataclass
class _Waiting:
    """Tokens whose masked keys and values have not been opened yet: shares (t, kv_heads, head_dim)."""

    keys: list[Words] = field(default_factory=list)
    values: list[Words] = field(default_factory=list)


class MaskedCache(KVCache):
    """One layer's cache at one party. Both parties make the same calls in lockstep.

    Products are right up to about 750 units (standard deviation), the accuracy of the prepared terms. Rounds
    and bytes: `append` none, `scores` one exchange of `scores_bytes`, `mix` one of `mix_bytes`. Leaks nothing
    beyond the numbers of tokens and of truncated ones.
    """

    def __init__(self, channel: Channel, source: AttentionSource, layer: int) -> None:
        self.channel, self.source, self.layer, self.shape = channel, source, layer, source.shape
        self._waiting = _Waiting()
        self._opened = self._empty()

    def __len__(self) -> int:
        return int(self.source.live(self.layer).size)

    # --- tokens in

    def append_public(self, count: int, k: Signed | None, v: Signed | None) -> None:
        """Ordinary slots, with the server's integers as its shares; opened with the next query."""
        shape = (count, self.shape.kv_heads, self.shape.head_dim)
        if self.channel.role is Role.CLIENT:
            nothing = np.zeros(shape, np.uint64)
            return self._append(nothing, nothing, queries=False)
        if k is None or v is None or k.shape != shape or v.shape != shape:
            raise ParameterError("cache: the server must give keys and values of every public token")
        p = P_FIELD
        return self._append(arithmetic.from_signed(k, p), arithmetic.from_signed(v, p), queries=False)

    def append(self, k: Words, v: Words) -> None:
        """No message unless material runs dry; k and v are opened together with the next query."""
        shape = (len(k), self.shape.kv_heads, self.shape.head_dim)
        if k.shape != shape or v.shape != shape:
            raise ParameterError(f"cache: shares of shape {k.shape} and {v.shape}, expected {shape}")
        self._append(k, v, queries=True)

    def truncate(self, length: int) -> None:
        self.source.truncate(self.layer, length)
        excess = len(self._opened) + sum(map(len, self._waiting.keys)) - length
        while excess > 0 and self._waiting.keys:
            keys, values = self._waiting.keys.pop(), self._waiting.values.pop()
            if len(keys) > excess:
                self._waiting.keys.append(keys[:-excess])
                self._waiting.values.append(values[:-excess])
            excess -= min(len(keys), excess)
        self._opened.truncate(length)

    def shares(self, first: int = 0) -> tuple[Words, Words]:
        """This party's shares of the live keys and values from token `first` on: (t, kv_heads, head_dim)
        each. Local."""
        opened = len(self._opened)
        late = max(0, first - opened)  # of those that wait to be opened
        masks = self.source.masks(self.layer, self.source.live(self.layer)[opened + late :])
        keys, values = self._opened.shares(first)
        k, v = (self._gathered(x)[late:] for x in (self._waiting.keys, self._waiting.values))
        return (
            np.concatenate([keys, arithmetic.add(k, masks[0], P_FIELD)]),
            np.concatenate([values, arithmetic.add(v, masks[1], P_FIELD)]),
        )

    def remask(self, k: Words, v: Words) -> None:
        """Begin again with these shares of the live tokens, under the masks of the slots they have now.

        They are opened together with the next query.
        """
        keys, values = self.source.masks(self.layer, self.source.live(self.layer))
        self._opened, self._waiting = self._empty(), _Waiting()
        if len(k):
            self._waiting.keys.append(arithmetic.sub(k, keys, P_FIELD))
            self._waiting.values.append(arithmetic.sub(v, values, P_FIELD))

    def _append(self, k: Words, v: Words, queries: bool) -> None:
        # The counters are spent, and recorded, before anything that depends on them is sent.
        keys, values = self.source.append(self.layer, len(k), queries)
        self._waiting.keys.append(arithmetic.sub(k, keys, P_FIELD))
        self._waiting.values.append(arithmetic.sub(v, values, P_FIELD))

    # --- products

    def scores(self, q: Words) -> Words:
        """As `KVCache.scores`; each token may ask once."""
        parts = self.source.questions(self.layer, len(q))
        asked = [part.ask() for part in parts]
        masks = np.concatenate([self._by_token(a) for a, _ in asked])
        opened = self._open(arithmetic.sub(q, masks, P_FIELD))
        result = np.zeros((len(q), self.shape.heads, len(self)), np.uint64)
        at = 0
        for part, (a, products) in zip(parts, asked, strict=True):
            rows = slice(at, at := at + part.counters.size)
            self._score(part, a, products, self._by_head(opened[rows]), result[rows])
        return result

    def mix(self, p: Words) -> Words:
        """As `KVCache.mix`; each token may ask once."""
        if p.shape[1:] != (self.shape.heads, len(self)):
            raise ParameterError(f"cache: probabilities of shape {p.shape} for {len(self)} tokens")
        parts = self.source.questions(self.layer, len(p))
        weighed = [part.weigh() for part in parts]
        masked, seen, at = [], [], 0
        for part, (weights, _) in zip(parts, weighed, strict=True):
            full = self._spread(part, p[at : (at := at + part.counters.size)])
            seen.append(np.broadcast_to(_seen(part), full.shape))
            masked.append(arithmetic.sub(full, self._by_token(weights), P_FIELD)[seen[-1]])
        opened = self._open(np.concatenate(masked))
        results, at = [], 0
        for part, (weights, mixes), where in zip(parts, weighed, seen, strict=True):
            full = np.zeros(where.shape, np.uint64)
            full[where] = opened[at : (at := at + int(where.sum()))]
            results.append(self._mix(part, weights, mixes, self._by_head(full)))
        return np.concatenate(results)

    def _score(self, part: Questions, a: Words, products: Words, q: Words, out: Words) -> None:
        """a·k̂ + q̂·(b [+ k̂ at the server]) + a·b into out (t, heads, n), where a token may look."""
        live = self._visible(part)
        local = matmul(np.concatenate([a, q], axis=2), self._opened.key_columns(live.size))
        ahead = products[:, :, _places(part, live)]
        scores = self._by_token(arithmetic.add(local, ahead, P_FIELD))
        seen = live[None, None, :] <= part.counters[:, None, None]
        np.copyto(out[:, :, : live.size], scores, where=seen)

    def _mix(self, part: Questions, weights: Words, mixes: Words, p: Words) -> Words:
        """π·v̂ + p̂·(d [+ v̂ at the server]) + Σ π·d, (t, heads, head_dim)."""
        live = self._visible(part)
        places = _places(part, live)
        left = np.stack([weights[:, :, places], p[:, :, places]], axis=3).reshape(*p.shape[:2], -1)
        total = arithmetic.add(mixes, matmul(left, self._opened.value_rows(live.size)), P_FIELD)
        # Slots that died since the block was made have probability zero, so that p̂ = −π; their v̂, which could
        # be anything, is taken as zero.
        last = int(np.searchsorted(part.positions, part.counters[-1], "right"))
        if last > live.size:
            gone = np.setdiff1d(part.positions[:last], live)
            _, masks = self.source.masks(self.layer, gone)
            lost = p[:, :, _places(part, gone)]
            total = arithmetic.add(total, matmul(lost, masks.swapaxes(0, 1)), P_FIELD)
        return self._by_token(total)

    def _spread(self, part: Questions, p: Words) -> Words:
        """(t, heads, live) -> (t, heads, n): at the block's slots, zero where none is live."""
        live = self._visible(part)
        full = np.zeros((len(p), self.shape.heads, part.positions.size), np.uint64)
        full[:, :, _places(part, live)] = p[:, :, : live.size]
        return full

    def _visible(self, part: Questions) -> Indices:
        """Live slots that at least one of these queries sees."""
        live = self.source.live(self.layer)
        return live[: int(np.searchsorted(live, part.counters[-1], "right"))]

    # --- openings

    def _open(self, share: Words) -> Words:
        """Open `share`, and first in the same exchange the keys and values that wait: reveal(to=both)."""
        keys, values = (self._gathered(x) for x in (self._waiting.keys, self._waiting.values))
        own = np.concatenate([x.ravel() for x in (keys, values, share)])
        opened = arithmetic.add(own, exchange_field(self.channel, own), P_FIELD)
        self._waiting = _Waiting()
        k, v, rest = np.split(opened, [keys.size, 2 * keys.size])
        self._store(k.reshape(keys.shape), v.reshape(keys.shape))
        return rest.reshape(share.shape)

    def _gathered(self, parts: list[Words]) -> Words:
        empty = np.zeros((0, self.shape.kv_heads, self.shape.head_dim), np.uint64)
        return np.concatenate([empty, *parts])

    def _store(self, k: Words, v: Words) -> None:
        """Opened keys and values (t, kv_heads, head_dim) of the next live tokens, beside their masks."""
        first = len(self._opened)
        counters = self.source.live(self.layer)[first : first + len(k)]
        self._opened.append(k, v, *self.source.masks(self.layer, counters))

    def _empty(self) -> OpenedTokens:
        # One party adds the public terms q̂·k̂ and p̂·v̂ to its share.
        adds_public = self.channel.role is Role.SERVER
        return OpenedTokens(self.shape.kv_heads, self.shape.head_dim, adds_public)

    def _by_head(self, x: Words) -> Words:
        """(t, heads, m) -> (kv_heads, t·group, m)."""
        t, _, m = x.shape
        split = x.reshape(t, self.shape.kv_heads, -1, m).transpose(1, 0, 2, 3)
        return np.ascontiguousarray(split).reshape(self.shape.kv_heads, -1, m)

    def _by_token(self, x: Words) -> Words:
        """(kv_heads, t·group, m) -> (t, heads, m)."""
        heads, rows, m = x.shape
        group = self.shape.heads // heads
        split = x.reshape(heads, rows // group, group, m).transpose(1, 0, 2, 3)
        return np.ascontiguousarray(split).reshape(rows // group, self.shape.heads, m)

    # --- upkeep

    def refresh(self) -> None:
        """Nothing to do: there is no noise, and dead slots go with the next block."""

    def save(self) -> bytes:
        """Live tokens with this party's masks. Keys and values that wait for a query are opened first."""
        if self._waiting.keys:
            self._open(np.zeros(0, np.uint64))
        source, live, shape = self.source, self.source.live(self.layer), self.shape
        head = _HEADER.pack(
            _MAGIC, _VERSION, int(self.channel.role), shape.heads, shape.kv_heads, shape.head_dim,
            source.used, live.size,
        )  # fmt: skip
        arrays = np.stack([*self._opened.opened(), *source.masks(self.layer, live)])
        return head + live.astype("<u8").tobytes() + pack_bits(arrays, _WIDTH).tobytes()

    def load(self, data: bytes) -> None:
        """Needs the other layers' `load` too before the next token; material that was ready is spent."""
        live, used, arrays = self._parsed(data)
        self.source.restore(self.layer, live, used, arrays[2], arrays[3])
        self._waiting, self._opened = _Waiting(), self._empty()
        self._store(arrays[0], arrays[1])

    def _parsed(self, data: bytes) -> tuple[Indices, int, Words]:
        if len(data) < _HEADER.size:
            raise CorruptFileError("a saved cache is truncated")
        magic, version, role, *shape, used, count = _HEADER.unpack_from(data)
        if magic != _MAGIC or version != _VERSION:
            raise CorruptFileError("these bytes are not a saved cache of this version")
        if role != int(self.channel.role):
            raise CorruptFileError("this cache was saved by the other party")
        if shape != [self.shape.heads, self.shape.kv_heads, self.shape.head_dim]:
            raise CorruptFileError("this cache was saved for another model")
        numbers = 4 * count * self.shape.kv_heads * self.shape.head_dim
        start = _HEADER.size + 8 * count
        if used >= 1 << 62 or len(data) != start + packed_size(numbers, _WIDTH):
            raise CorruptFileError("a saved cache announces another number of tokens than it holds")
        live = np.frombuffer(data, "<u8", count, _HEADER.size)
        if count and (live[-1] >= used or (live[1:] <= live[:-1]).any()):
            raise CorruptFileError("the tokens of a saved cache are out of order")
        try:
            values = arithmetic.checked(unpack_bits(data[start:], numbers, _WIDTH), P_FIELD)
        except IntegrityError:
            raise CorruptFileError("a saved cache holds a number outside the field") from None
        return (
            live.astype(np.int64),
            used,
            values.reshape(4, count, self.shape.kv_heads, self.shape.head_dim),
        )

    # --- cost

    def scores_bytes(self, tokens: int) -> int:
        """Bytes each way of `scores` for the last `tokens` tokens, with what waits to be opened."""
        return self._open_bytes(tokens * self.shape.heads * self.shape.head_dim)

    def mix_bytes(self, tokens: int) -> int:
        """Bytes each way of `mix` for the last `tokens` tokens."""
        parts = self.source.questions(self.layer, tokens)
        return self._open_bytes(self.shape.heads * sum(int(_seen(part).sum()) for part in parts))

    def _open_bytes(self, count: int) -> int:
        waiting = 2 * sum(map(len, self._waiting.keys)) * self.shape.kv_heads * self.shape.head_dim
        return packed_size(waiting + count, _WIDTH)


def _places(part: Questions, counters: Indices) -> slice | Indices:
    """Where slots of the block lie on its last axis; both ascend."""
    if counters.size and part.positions[counters.size - 1] == counters[-1]:
        return slice(counters.size)  # no dead slot between them
    return np.searchsorted(part.positions, counters)


def _seen(part: Questions) -> npt.NDArray[np.bool_]:
    """(t, 1, n): the slots for which a query has a mask."""
    seen: npt.NDArray[np.bool_] = part.positions[None, None, :] <= part.counters[:, None, None]
    return seen
