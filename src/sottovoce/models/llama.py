"""Llama (Hugging Face `model_type: llama`): RMSNorm, rotary positions, grouped heads, SwiGLU.

The float32 reference of the family, and the meaning of its Hugging Face config and tensor names.
Qwen2 differs by biases of q, k, v only and shares everything here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sottovoce.models.config import Config, Rope
from sottovoce.models.hf_config import HfConfig
from sottovoce.models.layers import Hook, PlainCache, activate, attention, linear, no_hook, rms_norm, rotate
from sottovoce.models.weights import Array, BlockWeights, Weights

Take = Callable[[str], Array]


def forward(
    config: Config, weights: Weights, tokens: np.ndarray, cache: PlainCache, hook: Hook = no_hook
) -> Array:
    """Run new tokens (T,) behind the cached ones.

    Returns the final residual stream after the last norm (T, width).
    """
    assert config.rope is not None
    new, start, rope = len(tokens), cache.length, config.rope
    x = hook("embedding", -1, weights.embedding[tokens])
    for i, w in enumerate(weights.blocks):
        h = rms_norm(hook("norm1_in", i, x), w.norm1, config.eps)
        q = hook("q", i, linear(h, w.q, w.q_bias)).reshape(new, config.heads, config.head_dim)
        k = hook("k", i, linear(h, w.k, w.k_bias)).reshape(new, config.kv_heads, config.head_dim)
        v = hook("v", i, linear(h, w.v, w.v_bias)).reshape(new, config.kv_heads, config.head_dim)
        keys, values = cache.append(i, rotate(k, rope, start), v)
        mixed = hook("context", i, attention(rotate(q, rope, start), keys, values, hook, i))
        x = x + hook("attention_out", i, linear(mixed, w.o, w.o_bias))

        h = rms_norm(hook("norm2_in", i, x), w.norm2, config.eps)
        assert w.gate is not None
        gate = hook("gate", i, linear(h, w.gate, w.gate_bias))
        up = hook("up", i, linear(h, w.up, w.up_bias))
        product = hook("gate_up", i, activate(gate, config.activation) * up)
        x = x + hook("mlp_out", i, linear(product, w.down, w.down_bias))
    cache.advance(new)
    return rms_norm(hook("norm_in", config.layers, x), weights.norm, config.eps)


def describe(source: HfConfig) -> Config:
    """`config.json` of a llama model."""
    return describe_llama_like(source, "llama", qkv_bias=source.flag("attention_bias", False))


def describe_llama_like(source: HfConfig, model_type: str, qkv_bias: bool) -> Config:
    source.require("hidden_act", "silu", "the MLP's activation", default="silu")
    heads = source.integer("num_attention_heads")
    width = source.integer("hidden_size")
    return Config(
        model_type=model_type,
        vocab_size=source.integer("vocab_size"),
        width=width,
        layers=source.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=source.integer("num_key_value_heads", heads),
        head_dim=source.integer("head_dim", width // max(heads, 1)),
        ffn_width=source.integer("intermediate_size"),
        context_length=source.integer("max_position_embeddings"),
        norm="rms",
        eps=source.number("rms_norm_eps", 1e-6),
        mlp="swiglu",
        activation="silu",
        rope=Rope(theta=source.rope_theta(10000.0), style="half"),
        qkv_bias=qkv_bias,
        # Llama's attention_bias gives o_proj a bias too; Qwen2's biases are on q, k, v only.
        o_bias=qkv_bias and model_type == "llama",
        mlp_bias=source.flag("mlp_bias", False),
        tied_head=source.flag("tie_word_embeddings", False),
    )


def assemble(config: Config, take: Take) -> Weights:
    """Tensors by their Hugging Face names."""

    def block(layer: int) -> BlockWeights:
        at = f"model.layers.{layer}."
        entries: dict[str, Array] = {}
        for name, theirs in _BLOCK_NAMES.items():
            entries[name] = take(at + theirs + ".weight")
            if _has_bias(config, name):
                entries[name + "_bias"] = take(at + theirs + ".bias")
        return BlockWeights(**entries)

    return Weights(
        embedding=take("model.embed_tokens.weight"),
        blocks=tuple(block(layer) for layer in range(config.layers)),
        norm=take("model.norm.weight"),
        head=None if config.tied_head else take("lm_head.weight"),
    )


_BLOCK_NAMES: Mapping[str, str] = {
    "norm1": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "norm2": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}

# Buffers that old checkpoints carry and nothing needs.
IGNORED = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)


def _has_bias(config: Config, name: str) -> bool:
    flags: dict[str, Any] = dict.fromkeys("qkv", config.qkv_bias) | {"o": config.o_bias}
    flags |= dict.fromkeys(("gate", "up", "down"), config.mlp_bias)
    return bool(flags.get(name, False))
