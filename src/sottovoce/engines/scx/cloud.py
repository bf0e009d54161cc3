"""The server's half of profile `paper`: it multiplies what it is given, and alone runs the middle blocks.

Operations of the ledger: first (blocks shared with the user), middle, last. `observe(name, layer, rows)` sees
what this half computes with, for the attack lab: an honest but curious server has all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.engines.scx import ops, wire
from sottovoce.engines.scx.arrays import Array, Arrays, namespace
from sottovoce.engines.scx.cache import KeyValues, Rows
from sottovoce.engines.scx.ops import Layer
from sottovoce.engines.scx.profile import Profile
from sottovoce.models.config import Config
from sottovoce.net import Channel

Observe = Callable[[str, int, Array], None]


def nobody(name: str, layer: int, rows: Array) -> None:
    """An observer that looks away."""


class PaperCloud:
    """One session at the server: keys and values of the middle blocks, and encoded keys of the last.

    Stateless in the first blocks: their keys and values stay at the user.
    """

    def __init__(
        self, config: Config, profile: Profile, layers: list[Layer], arrays: Arrays, observe: Observe = nobody
    ) -> None:
        self.config, self.profile, self.arrays, self._observe = config, profile, arrays, observe
        self._layers = layers
        self._first = range(profile.first_blocks)
        self._middle = range(profile.first_blocks, config.layers - 1)
        self._caches = {i: KeyValues(arrays, config.kv_heads, config.head_dim) for i in self._middle}
        # Of the last block: keys in the user's order with redundant rows, then new ones as they come.
        self.keys = Rows(arrays, (config.kv_heads, config.head_dim))
        self.encoded = 0  # rows in the user's order
        self.prefilled = 0  # tokens among them
        self.length = 0

    def open(self, channel: Channel) -> None:
        self._channel = channel

    def prefill(self, tokens: int) -> None:
        """The first tokens of a session: encoded in the first blocks, alone after key sharing."""
        c, rows = self.config, tokens + self.profile.redundant(tokens)
        with self._operation("first"):
            for i in self._first:
                self._first_block(i, tokens, rows)
        x = self._receive(rows, c.width)
        place = wire.receive_places(self._channel, tokens, rows)
        x = namespace(x).take(x, self.arrays.put(place), axis=0)
        with self._operation("middle"):
            x = self._middle_blocks(x)
        with self._operation("last"):
            q, k, v = self._last_projections(x)
            self._send(k)
            self._send(v)
            self._send(q[-1:, ...])
            self._send(x[-1:, :])
            self.keys.clear()
            self.keys.append(self._receive(rows, c.kv_heads, c.head_dim))
            self._seen("encoded keys", c.layers - 1, self.keys.all)
            self._last_output(1)
        self.encoded, self.prefilled, self.length = rows, tokens, tokens

    def extend(self, tokens: int) -> None:
        """More tokens in order, by the protocol of generation."""
        c = self.config
        with self._operation("first"):
            for i in self._first:
                h = self._receive(tokens, c.width)
                self._seen("noised input", i, h)
                self._send(ops.qkv(h, self._layers[i]))
                x = self._receive(tokens, c.width)
                self._seen("exact residual", i, x)
                y = ops.mlp(x, self._layers[i], c)
                if i + 1 < len(self._first):
                    self._send(y)
        with self._operation("middle"):
            x = self._middle_blocks(x + y)
            q, k, v = self._last_projections(x)
            self._send(ops.scores_of(q, self.keys.append(k)))
            self._send(v)
            self._send(x)
        with self._operation("last"):
            self._last_output(tokens)
        self.length += tokens

    def truncate(self, length: int) -> None:
        """Rows in the user's order stay: the server cannot tell them apart. The user asks for them no
        more."""
        for cache in self._caches.values():
            cache.truncate(length)
        self.prefilled = min(self.prefilled, length)
        self.keys.truncate(self.encoded + length - self.prefilled)
        self.length = length

    def save(self) -> dict[str, npt.NDArray[Any]]:
        marks = np.array([self.encoded, self.prefilled, self.length], np.int64)
        return {"marks": marks, "keys": self.keys.save()}

    def load(self, state: dict[str, npt.NDArray[Any]]) -> None:
        self.encoded, self.prefilled, self.length = (int(v) for v in state["marks"])
        self.keys.load(state["keys"])

    @property
    def caches(self) -> list[KeyValues]:
        """Keys and values that grow by a row with each token."""
        return list(self._caches.values())

    def _first_block(self, i: int, tokens: int, rows: int) -> None:
        c, layer = self.config, self._layers[i]
        h = self._receive(rows, c.width)
        self._seen("noised input", i, h)
        self._send(ops.qkv(h, layer))
        q, k, v = (self._receive(tokens, heads, c.head_dim) for heads in (c.heads, c.kv_heads, c.kv_heads))
        for name, value in (("queries", q), ("keys", k), ("values", v)):
            self._seen(name, i, value)
        self._send(ops.attention(q, k, v))
        self._send(ops.linear(self._receive(rows, c.q_width), layer.o, layer.o_bias))
        x = self._receive(rows, c.width)
        self._seen("permuted residual", i, x)
        self._send(ops.mlp(x, layer, c))

    def _middle_blocks(self, x: Array) -> Array:
        for i in self._middle:
            layer = self._layers[i]
            q, k, v = self._projections(x, i)
            self._seen("keys", i, k)
            self._seen("values", i, v)
            attended = ops.attention(q, *self._caches[i].append(k, v))
            x = x + ops.linear(attended, layer.o, layer.o_bias)
            x = x + ops.mlp(x, layer, self.config)
        return x

    def _last_projections(self, x: Array) -> tuple[Array, Array, Array]:
        return self._projections(x, self.config.layers - 1)

    def _projections(self, x: Array, i: int) -> tuple[Array, Array, Array]:
        c, layer = self.config, self._layers[i]
        h = ops.norm(x, layer.norm1, layer.norm1_bias, c)
        q, k, v = ops.split(ops.qkv(h, layer), c)
        q, k = (ops.rotate(part, c, self.length, self.arrays) for part in (q, k))
        return q, k, v

    def _last_output(self, rows: int) -> None:
        layer = self._layers[-1]
        mixed = self._receive(rows, self.config.q_width)
        self._seen("noised mix", self.config.layers - 1, mixed)
        self._send(ops.linear(mixed, layer.o, layer.o_bias))

    def _receive(self, *shape: int) -> Array:
        return wire.receive(self._channel, self.arrays, shape)

    def _send(self, x: Array) -> None:
        wire.send(self._channel, self.arrays, x)

    def _seen(self, name: str, layer: int, rows: Array) -> None:
        self._observe(name, layer, rows)

    def _operation(self, name: str) -> Any:
        return self._channel.ledger.operation(name)
