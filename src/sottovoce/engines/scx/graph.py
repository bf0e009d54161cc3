"""A decoder whose matrices somebody else multiplies: what the user computes in profile `hardened`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sottovoce.engines.scx import ops
from sottovoce.engines.scx.arrays import Array, Arrays
from sottovoce.engines.scx.bundle import UserWeights
from sottovoce.engines.scx.cache import KeyValues
from sottovoce.engines.scx.ops import Layer
from sottovoce.models.config import Config

# apply(layer, name, x): x (T, inputs) -> (T, outputs) with the biases.
Apply = Callable[[int, str, Array], Array]


def widths(config: Config) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of each of a block's matrices."""
    gated = 2 if config.gated else 1
    return {
        "qkv": (config.width, config.q_width + 2 * config.kv_width),
        "o": (config.q_width, config.width),
        "mlp_in": (config.width, gated * config.ffn_width),
        "down": (config.ffn_width, config.width),
    }


# The tensors that make up each of them.
MATRICES = {"qkv": ("q", "k", "v"), "o": ("o",), "mlp_in": ("gate", "up"), "down": ("down",)}


def multiply(layer: Layer, name: str, x: Array) -> Array:
    """One of a block's matrices with its bias, in the clear."""
    if name == "qkv":
        return ops.qkv(x, layer)
    if name == "o":
        return ops.linear(x, layer.o, layer.o_bias)
    if name == "mlp_in":
        return ops.mlp_input(x, layer)
    return ops.linear(x, layer.down, layer.down_bias)


class Graph:
    """Norms, positions, attention and activations of every block, with keys and values; embedding and
    head."""

    def __init__(self, config: Config, weights: UserWeights, arrays: Arrays) -> None:
        self.config, self.weights, self.arrays = config, weights, arrays
        self.layers = [weights.layer(i) for i in range(config.layers)]
        self.caches = [KeyValues(arrays, config.kv_heads, config.head_dim) for _ in self.layers]
        self.length = 0

    def forward(self, tokens: Sequence[int], apply: Apply, last_only: bool) -> Array:
        """Logits of more tokens, (T, vocab) or of the last one."""
        c = self.config
        x = self.arrays.put(self.weights.embed(tokens, self.length))
        for i, layer in enumerate(self.layers):
            q, k, v = ops.split(apply(i, "qkv", ops.norm(x, layer.norm1, layer.norm1_bias, c)), c)
            q, k = (ops.rotate(part, c, self.length, self.arrays) for part in (q, k))
            x = x + apply(i, "o", ops.attention(q, *self.caches[i].append(k, v)))
            y = apply(i, "mlp_in", ops.norm(x, layer.norm2, layer.norm2_bias, c))
            x = x + apply(i, "down", ops.mlp_middle(y, c))
        self.length += len(tokens)
        if last_only:
            x = x[-1:, :]
        return ops.linear(ops.norm(x, self.weights.norm, self.weights.norm_bias, c), self.weights.head)

    def truncate(self, length: int) -> None:
        for cache in self.caches:
            cache.truncate(length)
        self.length = length
