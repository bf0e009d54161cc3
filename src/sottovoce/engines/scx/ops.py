"""The operations of a decoder in the array API standard; `sottovoce.models.layers` is their NumPy reference.

All work row by row on (T, width) arrays of one floating type, except `attention`, which is causal and takes
its queries a few at a time, so that memory grows with T and not with its square.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from sottovoce.engines.scx.arrays import Array, Arrays, namespace
from sottovoce.models.config import Activation, Config
from sottovoce.models.layers import rope_tables
from sottovoce.models.weights import BlockWeights

_QUERIES = 128  # rows of scores at a time


@dataclass(frozen=True)
class Layer:
    """A block's tensors, by the names of `models.weights.BlockWeights`; those a party does not hold are
    None."""

    norm1: Array = None
    norm1_bias: Array = None
    q: Array = None
    q_bias: Array = None
    k: Array = None
    k_bias: Array = None
    v: Array = None
    v_bias: Array = None
    o: Array = None
    o_bias: Array = None
    norm2: Array = None
    norm2_bias: Array = None
    gate: Array = None
    gate_bias: Array = None
    up: Array = None
    up_bias: Array = None
    down: Array = None
    down_bias: Array = None


LAYER_TENSORS = tuple(field.name for field in dataclasses.fields(Layer))


def layer_of(block: BlockWeights, arrays: Arrays, dtype: type = np.float32) -> Layer:
    """A block in an array library. NumPy's float32 shares the model's memory."""
    found = {name: getattr(block, name) for name in LAYER_TENSORS}
    return Layer(
        **{k: None if v is None else arrays.put(v.astype(dtype, copy=False)) for k, v in found.items()}
    )


def linear(x: Array, weight: Array, bias: Array = None) -> Array:
    """x (T, inputs), weight (outputs, inputs) -> (T, outputs)."""
    y = x @ weight.T
    return y if bias is None else y + bias


def norm(x: Array, gain: Array, bias: Array, config: Config) -> Array:
    """RMSNorm, or LayerNorm where the description says so."""
    xp = namespace(x)
    if config.norm == "layer":
        x = x - xp.mean(x, axis=-1, keepdims=True)
    y = x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + config.eps) * gain
    return y if bias is None else y + bias


def activate(x: Array, kind: Activation) -> Array:
    xp = namespace(x)
    if kind == "silu":
        return x * (0.5 * (1.0 + xp.tanh(0.5 * x)))
    if kind == "gelu_tanh":
        return 0.5 * x * (1.0 + xp.tanh(float(np.sqrt(2 / np.pi)) * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1.0 + _erf(x / float(np.sqrt(2.0))))


def _erf(x: Array) -> Array:
    """Abramowitz and Stegun 7.1.28, in float64 inside: the reference's formula."""
    xp = namespace(x)
    z = xp.astype(xp.abs(x), xp.float64)
    poly = 0.0000430638
    for c in (0.0002765672, 0.0001520143, 0.0092705272, 0.0422820123, 0.0705230784, 1.0):
        poly = poly * z + c
    return xp.sign(x) * xp.astype(1.0 - 1.0 / poly**16, x.dtype)


def qkv(h: Array, layer: Layer) -> Array:
    """h (T, width), normalised -> queries, keys and values side by side, (T, q_width + 2·kv_width)."""
    parts = [
        linear(h, w, b)
        for w, b in ((layer.q, layer.q_bias), (layer.k, layer.k_bias), (layer.v, layer.v_bias))
    ]
    return namespace(h).concat(parts, axis=1)


def split(y: Array, config: Config) -> tuple[Array, Array, Array]:
    """What `qkv` returned, as (T, heads, head_dim) and twice (T, kv_heads, head_dim)."""
    xp, c, a = namespace(y), config, config.q_width
    shapes = (
        (y[:, :a], c.heads),
        (y[:, a : a + c.kv_width], c.kv_heads),
        (y[:, a + c.kv_width :], c.kv_heads),
    )
    q, k, v = (xp.reshape(part, (part.shape[0], heads, c.head_dim)) for part, heads in shapes)
    return q, k, v


def mlp_input(h: Array, layer: Layer) -> Array:
    """h (T, width), normalised -> gate and up side by side, or just up."""
    up = linear(h, layer.up, layer.up_bias)
    if layer.gate is None:
        return up
    return namespace(h).concat([linear(h, layer.gate, layer.gate_bias), up], axis=1)


def mlp_middle(y: Array, config: Config) -> Array:
    """What `mlp_input` returned -> (T, ffn_width)."""
    if not config.gated:
        return activate(y, config.activation)
    return activate(y[:, : config.ffn_width], config.activation) * y[:, config.ffn_width :]


def mlp(x: Array, layer: Layer, config: Config) -> Array:
    """The second half of a block without its residual: x (T, width) -> (T, width)."""
    h = norm(x, layer.norm2, layer.norm2_bias, config)
    return linear(mlp_middle(mlp_input(h, layer), config), layer.down, layer.down_bias)


def rotate(x: Array, config: Config, start: int, arrays: Arrays) -> Array:
    """Rotary positions of x (T, heads, head_dim), whose first row stands at `start`; nothing without them."""
    if config.rope is None:
        return x
    xp = namespace(x)
    tables = rope_tables(config.rope, config.head_dim, np.arange(start, start + x.shape[0]))
    cos, sin = (xp.astype(arrays.put(t), x.dtype)[:, None, :] for t in tables)
    if config.rope.style == "half":
        half = config.head_dim // 2
        a, b = x[..., :half], x[..., half:]
        return xp.concat([a * cos - b * sin, b * cos + a * sin], axis=-1)
    a, b = x[..., 0::2], x[..., 1::2]
    return xp.reshape(xp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1), x.shape)


def softmax(scores: Array) -> Array:
    xp = namespace(scores)
    e = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))
    return e / xp.sum(e, axis=-1, keepdims=True)


def scores_of(q: Array, k: Array) -> Array:
    """q (T, heads, d), k (n, kv_heads, d) -> q·k/√d, (heads, T, n)."""
    xp, (new, heads, d), kv_heads = namespace(q), q.shape, k.shape[1]
    # Query heads that share a key-value head become extra rows of one matrix product.
    rows = xp.permute_dims(xp.reshape(q, (new, kv_heads, heads // kv_heads, d)), (1, 2, 0, 3))
    rows = xp.reshape(rows, (kv_heads, -1, d))
    return xp.reshape(rows @ xp.permute_dims(k, (1, 2, 0)), (heads, new, -1)) * (1.0 / float(np.sqrt(d)))


def hide_future(scores: Array) -> Array:
    """Scores (heads, T, n) of the last T of n positions, minus infinity where a key is in the future."""
    xp, new, total = namespace(scores), scores.shape[1], scores.shape[2]
    if new == 1:
        return scores
    future = xp.triu(xp.ones((new, total), dtype=xp.int8), k=total - new + 1) > 0
    return xp.where(future, xp.asarray(-xp.inf, dtype=scores.dtype), scores)


def mix(probabilities: Array, v: Array) -> Array:
    """probabilities (heads, T, n), v (n, kv_heads, d) -> (T, heads·d)."""
    xp, (heads, new, total), (kv_heads, d) = namespace(v), probabilities.shape, v.shape[1:]
    rows = xp.reshape(probabilities, (kv_heads, heads // kv_heads * new, total))
    mixed = xp.reshape(rows @ xp.permute_dims(v, (1, 0, 2)), (heads, new, d))
    return xp.reshape(xp.permute_dims(mixed, (1, 0, 2)), (new, heads * d))


def attention(q: Array, k: Array, v: Array) -> Array:
    """Causal attention of the last T of n positions: q (T, heads, d), k and v (n, kv_heads, d) -> (T,
    heads·d)."""
    new, total = q.shape[0], k.shape[0]
    out = []
    for i in range(0, new, _QUERIES):
        part = q[i : min(i + _QUERIES, new), ...]
        seen = total - new + i + part.shape[0]
        scores = hide_future(scores_of(part, k[:seen, ...]))
        out.append(mix(softmax(scores), v[:seen, ...]))
    return out[0] if len(out) == 1 else namespace(q).concat(out, axis=0)
