"""The user's half of profile `paper` (SCX, SIGCOMM 2025): encodes, decodes, and finishes the last block.

Prefill, in each of the first blocks: π^l(norm(X) ⊕ r), in the first one with Laplace noise, goes up;
queries, keys and values come back and return in order, features permuted by π^r, to be attended over; and so
on. Then the residual goes up together with its π^l, which shares the key of the middle blocks: the server
runs them alone. Of the last block the server keeps encoded keys; values stay here, and so does the
classifier.

Where we differ from the paper: the user attends in the first blocks of generation with the keys and values
that it holds (as published, they travel for every token); logits are computed by the user for the first token
too; the last block of the prefill is finished here, for its last row only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.engines.scx import ops, wire
from sottovoce.engines.scx.arrays import Array, Arrays, namespace
from sottovoce.engines.scx.bundle import UserWeights
from sottovoce.engines.scx.cache import KeyValues, Rows
from sottovoce.engines.scx.keys import HeadKey, RowKey, laplace, redundant_rows
from sottovoce.engines.scx.noise import NoiseStock
from sottovoce.engines.scx.ops import Layer
from sottovoce.engines.scx.profile import Profile
from sottovoce.models.config import Config
from sottovoce.net import Channel
from sottovoce.ring.sampling import Stream

_SAMPLE = 512  # rows of the embedding from which the noise's scale is taken


class PaperUser:
    """One session at the user: keys and values of the first blocks, values and the row key of the last."""

    def __init__(self, config: Config, profile: Profile, weights: UserWeights, arrays: Arrays) -> None:
        self.config, self.profile, self.weights, self.arrays = config, profile, weights, arrays
        self._stream = Stream()
        self._first = [weights.layer(i) for i in range(profile.first_blocks)]
        self._last = weights.layer(config.layers - 1)
        self._caches = [KeyValues(arrays, config.kv_heads, config.head_dim) for _ in self._first]
        self._values = Rows(arrays, (config.kv_heads, config.head_dim))
        self._columns = np.zeros(0, np.int64)  # position -> row of the server's encoded keys
        self._encoded = self._prefilled = self.length = 0
        self._noise_in = self._stock(
            self._input_scale(), config.width, lambda a: _bare_qkv(a, self._first[0])
        )
        self._noise_out = self._stock(
            self._mixed_scale(), config.q_width, lambda a: ops.linear(a, self._last.o)
        )

    def open(self, channel: Channel) -> None:
        self._channel = channel

    def prepare(self, tokens: int) -> None:
        """Noise and its images for a prefill of so many tokens or as many decoded ones."""
        self._noise_in.make(tokens + self.profile.redundant(tokens))
        self._noise_out.make(min(tokens, 64))

    def prefill(self, tokens: Sequence[int]) -> Array:
        """Logits (1, vocab) of the last of the first tokens of a session. Cost: 4 rounds a first block, 3
        more; about 50 bytes a token for each unit of width."""
        count, c = len(tokens), self.config
        extra = self.profile.redundant(count)
        x = self.arrays.put(self.weights.embed(tokens, 0))
        for i, layer in enumerate(self._first):
            x = self._first_block(i, layer, x, extra)
        key = RowKey.draw(self._stream, count, extra)
        self._send_rows(key, x)
        wire.send_places(self._channel, key.place)  # key sharing
        k, v = (self._receive(count, c.kv_heads, c.head_dim) for _ in "kv")
        q, x = self._receive(1, c.heads, c.head_dim), self._receive(1, c.width)
        key = RowKey.draw(self._stream, count, extra)
        flat = namespace(k).reshape(k, (count, c.kv_width))
        self._send_rows(key, flat)
        self._values.clear()
        self._columns, self._encoded, self._prefilled, self.length = key.place, key.rows, count, count
        return self._finish(x, ops.attention(q, k, self._values.append(v)))

    def extend(self, tokens: Sequence[int], last_only: bool) -> Array:
        """Logits of more tokens, (T, vocab) or of the last one. Cost: 1 round a first block and 2 more;
        heads·(n + R) scores and about 7 rows of the width for each token."""
        count, c = len(tokens), self.config
        x = self.arrays.put(self.weights.embed(tokens, self.length))
        with self._operation("first"):
            for i, layer in enumerate(self._first):
                alpha, image = self._noise(i, count)
                self._send(ops.norm(x, layer.norm1, layer.norm1_bias, c) + alpha)
                q, k, v = self._positioned(self._receive(count, c.q_width + 2 * c.kv_width) - image)
                mixed = ops.attention(q, *self._caches[i].append(k, v))
                x = x + ops.linear(mixed, layer.o, layer.o_bias)
                self._send(x)
                if i + 1 < len(self._first):
                    x = x + self._receive(count, c.width)
        new = self._encoded + np.arange(self.length - self._prefilled, self.length - self._prefilled + count)
        with self._operation("middle"):  # at the server; the user waits
            scores = self._receive(c.heads, count, int(new[-1]) + 1)
            values = self._values.append(self._receive(count, c.kv_heads, c.head_dim))
            x = self._receive(count, c.width)
        self._columns = np.concatenate([self._columns, new])
        self.length += count
        with self._operation("last"):
            scores = namespace(scores).take(scores, self.arrays.put(self._columns), axis=2)
            mixed = ops.mix(ops.softmax(ops.hide_future(scores)), values)
            return self._finish(x, mixed, last_only)

    def truncate(self, length: int) -> None:
        for cache in self._caches:
            cache.truncate(length)
        self._values.truncate(length)
        self._columns = self._columns[:length]
        # The server keeps the prefill's rows; where the prefill is cut, new ones stand behind them all.
        self._prefilled = min(self._prefilled, length)
        self.length = length

    def forget_key(self) -> None:
        """Take another row key for the last block's encoded keys of the prefill: somebody's who guesses
        it."""
        other = RowKey.draw(self._stream, self._prefilled, self._encoded - self._prefilled)
        self._columns = np.concatenate([other.place, self._columns[self._prefilled :]])

    def forget(self) -> None:
        """Lose this half: no keys and no values of earlier tokens, only their number. What the server keeps
        is all that is left of them."""
        for cache in self._caches:
            cache.truncate(0)
        self._values.truncate(0)
        self._columns = np.zeros(0, np.int64)

    def save(self) -> dict[str, npt.NDArray[Any]]:
        """Everything secret that a session needs to go on; the noise in stock is not kept."""
        marks = np.array([self._encoded, self._prefilled, self.length], np.int64)
        return {"marks": marks, "columns": self._columns.copy(), "values": self._values.save()}

    def load(self, state: dict[str, npt.NDArray[Any]]) -> None:
        self._encoded, self._prefilled, self.length = (int(v) for v in state["marks"])
        self._columns = np.array(state["columns"], np.int64)
        self._values.load(state["values"])

    @property
    def caches(self) -> list[KeyValues]:
        """Keys and values that grow by a row with each token."""
        return self._caches

    def _first_block(self, i: int, layer: Layer, x: Array, extra: int) -> Array:
        c, count = self.config, int(x.shape[0])
        key, heads = RowKey.draw(self._stream, count, extra), HeadKey.draw(self._stream, c)
        h = self._widened(key, ops.norm(x, layer.norm1, layer.norm1_bias, c))
        alpha, image = self._noise(i, key.rows)
        self._send(h + alpha)
        y = key.decode(self.arrays, self._receive(key.rows, c.q_width + 2 * c.kv_width) - image)
        q, k, v = self._positioned(y)
        self._caches[i].append(k, v)
        for part in heads.encode(self.arrays, q, k, v):
            self._send(part)
        mixed = heads.decode(self.arrays, self._receive(count, c.heads, c.head_dim))
        key = RowKey.draw(self._stream, count, extra)
        self._send_rows(key, namespace(mixed).reshape(mixed, (count, c.q_width)))
        x = x + key.decode(self.arrays, self._receive(key.rows, c.width))
        key = RowKey.draw(self._stream, count, extra)
        self._send_rows(key, x)
        return x + key.decode(self.arrays, self._receive(key.rows, c.width))

    def _finish(self, x: Array, mixed: Array, last_only: bool = True) -> Array:
        """The last block from its attention on, and the classifier."""
        layer = self._last
        if last_only:
            x = x[-1:, :]  # the server multiplies every row that it has seen
        alpha, image = self._noise_out.take(int(mixed.shape[0]))
        self._send(mixed + alpha)
        y = self._receive(int(mixed.shape[0]), self.config.width) - image
        x = x + (y[-1:, :] if last_only else y)
        x = x + ops.mlp(x, layer, self.config)
        return ops.linear(
            ops.norm(x, self.weights.norm, self.weights.norm_bias, self.config), self.weights.head
        )

    def _positioned(self, y: Array) -> tuple[Array, Array, Array]:
        q, k, v = ops.split(y, self.config)
        start = self.length
        q, k = (ops.rotate(part, self.config, start, self.arrays) for part in (q, k))
        return q, k, v

    def _noise(self, i: int, rows: int) -> tuple[Array, Array]:
        """(α, αW); only the first block's input is noised, as published."""
        return self._noise_in.take(rows) if i == 0 else (0.0, 0.0)

    def _stock(self, scale: float, width: int, image: Any) -> NoiseStock:
        scale *= self.profile.noise
        return NoiseStock(self.arrays, lambda rows: laplace(self._stream, scale, rows, width), image)

    def _input_scale(self) -> float:
        """Root mean square of the first block's input, over some of the vocabulary."""
        rows = self.weights.embedding[:: max(1, len(self.weights.embedding) // _SAMPLE)]
        first = self._first[0]
        h = self.arrays.get(
            ops.norm(self.arrays.put(np.array(rows)), first.norm1, first.norm1_bias, self.config)
        )
        return float(np.sqrt(np.mean(h.astype(np.float64) ** 2)))

    def _mixed_scale(self) -> float:
        """Root mean square of values in the first block, which stands for that of the last one's."""
        return (
            self._input_scale() * float(np.sqrt(self.config.width)) * _rms(self.arrays.get(self._first[0].v))
        )

    def _widened(self, key: RowKey, x: Array) -> Array:
        plain = self.arrays.get(x)
        extra = redundant_rows(self._stream, plain, key.rows - len(plain))
        return key.encode(self.arrays, x, self.arrays.put(extra))

    def _operation(self, name: str) -> Any:
        return self._channel.ledger.operation(name)

    def _send_rows(self, key: RowKey, x: Array) -> None:
        self._send(self._widened(key, x))

    def _receive(self, *shape: int) -> Array:
        return wire.receive(self._channel, self.arrays, shape)

    def _send(self, x: Array) -> None:
        wire.send(self._channel, self.arrays, x)


def _bare_qkv(alpha: Array, layer: Layer) -> Array:
    """αW without the biases, which the server adds once."""
    return namespace(alpha).concat([ops.linear(alpha, w) for w in (layer.q, layer.k, layer.v)], axis=1)


def _rms(x: npt.NDArray[Any]) -> float:
    return float(np.sqrt(np.mean(np.asarray(x, np.float64) ** 2)))
