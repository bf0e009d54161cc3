"""What each of several candidate tokens would do behind a prefix that the attacker knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sottovoce.engines.scx import ops
from sottovoce.engines.scx.arrays import Arrays
from sottovoce.models import Config, Model

Floats = npt.NDArray[Any]
_ARRAYS = Arrays(np)


@dataclass(frozen=True)
class BlockStates:
    """Of one block, a row for each candidate: positioned q, k and v, its matrices' inputs, and the residual
    behind its attention; the last two are not computed of every block (`Prefix.states`)."""

    q: Floats
    k: Floats
    v: Floats
    inputs: dict[str, Floats]
    residual: Floats | None = None


class Prefix:
    """Keys and values of known tokens in a model's first blocks."""

    def __init__(self, model: Model, layers: int, tokens: Sequence[int] = ()) -> None:
        c = model.config
        self.model, self._layers = model, layers
        shape = (0, c.kv_heads, c.head_dim)
        self.k = [np.zeros(shape, np.float32) for _ in range(layers)]
        self.v = [np.zeros(shape, np.float32) for _ in range(layers)]
        self.length = 0
        for token in tokens:
            self.append(token)

    def states(
        self, candidates: npt.NDArray[np.int64], whole: bool = True, residual: bool = False
    ) -> list[BlockStates]:
        """Each candidate as the next token, none beside the others. whole: also of the last block what comes
        behind q, k and v; residual: of that only what is behind its attention."""
        c = self.model.config
        out: list[BlockStates] = []
        x = self.model.weights.embedding[candidates]
        if self.model.weights.positions is not None:
            x = x + self.model.weights.positions[self.length]
        for i, w in enumerate(self.model.weights.blocks[: self._layers]):
            layer = ops.layer_of(w, _ARRAYS)
            h = ops.norm(x, layer.norm1, layer.norm1_bias, c)
            q, k, v = ops.split(ops.qkv(h, layer), c)
            q, k = (rotated(part, c, self.length) for part in (q, k))
            if i == self._layers - 1 and not whole:
                return [*out, BlockStates(q, k, v, {"qkv": h})]
            mixed = self._attended(i, q, k, v)
            x = x + ops.linear(mixed, layer.o, layer.o_bias)
            behind = x
            if i == self._layers - 1 and residual:
                return [*out, BlockStates(q, k, v, {"qkv": h, "o": mixed}, behind)]
            g = ops.norm(x, layer.norm2, layer.norm2_bias, c)
            middle = ops.mlp_middle(ops.mlp_input(g, layer), c)
            x = x + ops.linear(middle, layer.down, layer.down_bias)
            out.append(BlockStates(q, k, v, {"qkv": h, "o": mixed, "mlp_in": g, "down": middle}, behind))
        return out

    def append(self, token: int) -> None:
        for i, state in enumerate(self.states(np.array([token]), whole=False)):
            self.k[i] = np.concatenate([self.k[i], state.k])
            self.v[i] = np.concatenate([self.v[i], state.v])
        self.length += 1

    def _attended(self, i: int, q: Floats, k: Floats, v: Floats) -> Floats:
        """Attention of each row over the prefix and itself: (C, heads·d)."""
        group = q.shape[1] // k.shape[1]
        before = ops.scores_of(q, self.k[i])
        own = np.einsum("chd,chd->hc", q, np.repeat(k, group, axis=1)) / np.float32(np.sqrt(q.shape[-1]))
        weights = ops.softmax(np.concatenate([before, own[:, :, None]], axis=2))
        mixed = ops.mix(weights[:, :, :-1], self.v[i]).reshape(q.shape)
        own_part = weights[:, :, -1].T[:, :, None] * np.repeat(v, group, axis=1)
        return np.asarray((mixed + own_part).reshape(len(q), -1))


class Sequences:
    """Many sequences of one length, side by side: one pass over the weights serves a token of each."""

    def __init__(self, model: Model, count: int) -> None:
        c = model.config
        self.model, self.length = model, 0
        self.k = [np.zeros((count, 0, c.kv_heads, c.head_dim), np.float32) for _ in range(c.layers)]
        self.v = [k.copy() for k in self.k]

    def append(self, tokens: npt.NDArray[np.int64]) -> Floats:
        """A token to each, (B,) -> the residual stream behind the final norm, (B, width)."""
        c, weights = self.model.config, self.model.weights
        x = weights.embedding[tokens]
        if weights.positions is not None:
            x = x + weights.positions[self.length]
        for i, w in enumerate(weights.blocks):
            layer = ops.layer_of(w, _ARRAYS)
            q, k, v = ops.split(ops.qkv(ops.norm(x, layer.norm1, layer.norm1_bias, c), layer), c)
            q, k = (rotated(part, c, self.length) for part in (q, k))
            self.k[i] = np.concatenate([self.k[i], k[:, None]], axis=1)
            self.v[i] = np.concatenate([self.v[i], v[:, None]], axis=1)
            rows = q.reshape(len(q), c.kv_heads, -1, c.head_dim) / np.float32(np.sqrt(c.head_dim))
            weighted = ops.softmax(rows @ self.k[i].transpose(0, 2, 3, 1))
            mixed = (weighted @ self.v[i].transpose(0, 2, 1, 3)).reshape(len(q), -1)
            x = x + ops.linear(mixed, layer.o, layer.o_bias)
            x = x + ops.mlp(x, layer, c)
        self.length += 1
        return np.asarray(ops.norm(x, weights.norm, weights.norm_bias, c))


def rotated(x: Floats, config: Config, position: int) -> Floats:
    """Rows (T, heads, head_dim) that all stand at the same position."""
    flat = x.reshape(1, -1, x.shape[-1])
    return np.asarray(ops.rotate(flat, config, position, _ARRAYS).reshape(x.shape))
