"""The operations of a decoder in NumPy float32, one function each, and the plaintext key-value cache."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sottovoce.errors import PromptTooLongError
from sottovoce.models.config import Activation, Config, Rope
from sottovoce.models.weights import Array

# Called as hook(name, layer, value) with every intermediate; what it returns replaces the value.
Hook = Callable[[str, int, Array], Array]


def no_hook(name: str, layer: int, value: Array) -> Array:
    return value


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """x (T, inputs), weight (outputs, inputs) -> (T, outputs)."""
    y: Array = x @ weight.T
    return y if bias is None else y + bias


def rms_norm(x: Array, gain: Array, eps: float) -> Array:
    mean_square = np.mean(np.square(x), axis=-1, keepdims=True)
    y: Array = x / np.sqrt(mean_square + np.float32(eps)) * gain
    return y


def layer_norm(x: Array, gain: Array, bias: Array, eps: float) -> Array:
    centred = x - np.mean(x, axis=-1, keepdims=True)
    variance = np.mean(np.square(centred), axis=-1, keepdims=True)
    y: Array = centred / np.sqrt(variance + np.float32(eps)) * gain + bias
    return y


def activate(x: Array, kind: Activation) -> Array:
    if kind == "silu":
        return x * sigmoid(x)
    if kind == "gelu_tanh":
        inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x * x * x)
        return np.asarray(np.float32(0.5) * x * (np.float32(1) + np.tanh(inner)))
    return np.float32(0.5) * x * (np.float32(1) + erf(x / np.float32(np.sqrt(2.0))))


def sigmoid(x: Array) -> Array:
    # tanh saturates where exp would overflow.
    return np.asarray(np.float32(0.5) * (np.float32(1) + np.tanh(np.float32(0.5) * x)))


def erf(x: Array) -> Array:
    """Error function to 1.2e-7 (Abramowitz and Stegun 7.1.28), in float64 inside."""
    z = np.abs(x.astype(np.float64))
    poly = np.polyval(
        [0.0000430638, 0.0002765672, 0.0001520143, 0.0092705272, 0.0422820123, 0.0705230784, 1.0], z
    )
    return np.asarray(np.sign(x) * (1.0 - poly**-16), dtype=np.float32)


def rope_tables(rope: Rope, head_dim: int, positions: np.ndarray) -> tuple[Array, Array]:
    """cos, sin of shape (T, head_dim // 2) for absolute positions (T,)."""
    frequencies = rope.theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    angles = positions[:, None].astype(np.float64) * frequencies
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(x: Array, rope: Rope, start: int) -> Array:
    """Rotary embedding of x (T, heads, head_dim) whose first row stands at position `start`."""
    cos, sin = rope_tables(rope, x.shape[-1], np.arange(start, start + len(x)))
    cos, sin = cos[:, None, :], sin[:, None, :]
    y = np.empty_like(x)
    if rope.style == "half":
        half = x.shape[-1] // 2
        a, b = x[..., :half], x[..., half:]
        y[..., :half], y[..., half:] = a * cos - b * sin, b * cos + a * sin
    else:
        a, b = x[..., 0::2], x[..., 1::2]
        y[..., 0::2], y[..., 1::2] = a * cos - b * sin, b * cos + a * sin
    return y


def softmax(scores: Array) -> Array:
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True), dtype=np.float32)


def attention(q: Array, k: Array, v: Array, hook: Hook = no_hook, layer: int = 0) -> Array:
    """Causal attention of T new tokens over n cached ones (the new ones included).

    q: (T, heads, head_dim), k and v: (n, kv_heads, head_dim) -> (T, heads·head_dim).
    """
    new, heads, head_dim = q.shape
    total, kv_heads, _ = k.shape
    group = heads // kv_heads
    # Query heads that share a key-value head become extra rows of one matrix product.
    rows = (
        q.reshape(new, kv_heads, group, head_dim)
        .transpose(1, 2, 0, 3)
        .reshape(kv_heads, group * new, head_dim)
    )
    scores = rows @ k.transpose(1, 2, 0) / np.float32(np.sqrt(head_dim))
    scores = hook("scores", layer, scores.reshape(heads, new, total))
    future = np.arange(total)[None, :] > np.arange(total - new, total)[:, None]
    probabilities = hook("probabilities", layer, softmax(np.where(future, np.float32(-np.inf), scores)))
    mixed = probabilities.reshape(kv_heads, group * new, total) @ v.transpose(1, 0, 2)
    return np.ascontiguousarray(
        mixed.reshape(kv_heads, group, new, head_dim).transpose(2, 0, 1, 3).reshape(new, heads * head_dim)
    )


class PlainCache:
    """Keys (rotated) and values of the tokens so far, in the clear.

    `k[layer]` is (length, kv_heads, head_dim).
    """

    def __init__(self, config: Config) -> None:
        self._shape = (config.kv_heads, config.head_dim)
        self._limit = config.context_length
        self._keys = [np.empty((0, *self._shape), np.float32) for _ in range(config.layers)]
        self._values = [np.empty((0, *self._shape), np.float32) for _ in range(config.layers)]
        self.length = 0

    def k(self, layer: int) -> Array:
        return self._keys[layer][: self.length]

    def v(self, layer: int) -> Array:
        return self._values[layer][: self.length]

    def require(self, tokens: int) -> None:
        """Refuse now, before any layer has run, tokens that do not fit the context."""
        if self.length + tokens > self._limit:
            raise PromptTooLongError(
                f"{self.length + tokens} tokens do not fit the model's context of {self._limit}"
            )

    def append(self, layer: int, k: Array, v: Array) -> tuple[Array, Array]:
        """Write rows of new tokens behind the cached ones and return everything.

        `advance` makes them count.
        """
        end = self.length + len(k)
        self.require(len(k))
        for store, rows in ((self._keys, k), (self._values, v)):
            if len(store[layer]) < end:
                grown = np.empty((min(self._limit, max(64, 2 * end)), *self._shape), np.float32)
                grown[: self.length] = store[layer][: self.length]
                store[layer] = grown
            store[layer][self.length : end] = rows
        return self._keys[layer][:end], self._values[layer][:end]

    def advance(self, tokens: int) -> None:
        self.length += tokens

    def truncate(self, length: int) -> None:
        """Forget all tokens from `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate a cache of {self.length} tokens to {length}")
        self.length = length
