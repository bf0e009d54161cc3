"""GPT-2 (Hugging Face `model_type: gpt2`): learned positions, LayerNorm, biases everywhere, GELU (tanh form).

The float32 reference of the family, and the meaning of its Hugging Face config and tensor names. The
checkpoint stores every matrix as (inputs, outputs) and q, k, v fused in one, `c_attn`.
"""

from __future__ import annotations

import numpy as np

from sottovoce.errors import CorruptFileError
from sottovoce.models.config import Config
from sottovoce.models.hf_config import HfConfig
from sottovoce.models.layers import Hook, PlainCache, activate, attention, layer_norm, linear, no_hook
from sottovoce.models.llama import Take
from sottovoce.models.weights import Array, BlockWeights, Weights


def forward(
    config: Config, weights: Weights, tokens: np.ndarray, cache: PlainCache, hook: Hook = no_hook
) -> Array:
    """Run new tokens (T,) behind the cached ones.

    Returns the final residual stream after the last norm (T, width).
    """
    assert weights.positions is not None and weights.norm_bias is not None
    new, start = len(tokens), cache.length
    shape = (new, config.heads, config.head_dim)
    x = hook("embedding", -1, weights.embedding[tokens] + weights.positions[start : start + new])
    for i, w in enumerate(weights.blocks):
        assert w.norm1_bias is not None and w.norm2_bias is not None
        h = layer_norm(hook("norm1_in", i, x), w.norm1, w.norm1_bias, config.eps)
        q = hook("q", i, linear(h, w.q, w.q_bias)).reshape(shape)
        k = hook("k", i, linear(h, w.k, w.k_bias)).reshape(shape)
        v = hook("v", i, linear(h, w.v, w.v_bias)).reshape(shape)
        keys, values = cache.append(i, k, v)
        mixed = hook("context", i, attention(q, keys, values, hook, i))
        x = x + hook("attention_out", i, linear(mixed, w.o, w.o_bias))

        h = layer_norm(hook("norm2_in", i, x), w.norm2, w.norm2_bias, config.eps)
        up = hook("up", i, linear(h, w.up, w.up_bias))
        x = x + hook("mlp_out", i, linear(activate(up, config.activation), w.down, w.down_bias))
    cache.advance(new)
    return layer_norm(hook("norm_in", config.layers, x), weights.norm, weights.norm_bias, config.eps)


def describe(source: HfConfig) -> Config:
    """`config.json` of a gpt2 model."""
    activation = source.text("activation_function", "gelu_new")
    if activation not in _ACTIVATIONS:
        source.refuse("the MLP's activation", activation, tuple(_ACTIVATIONS))
    source.require("scale_attn_weights", True, "attention without the 1/sqrt(head_dim) scale", default=True)
    source.require("scale_attn_by_inverse_layer_idx", False, "attention scaled by layer index", default=False)
    source.require("add_cross_attention", False, "cross attention", default=False)
    width, heads = source.integer("n_embd"), source.integer("n_head")
    return Config(
        model_type="gpt2",
        vocab_size=source.integer("vocab_size"),
        width=width,
        layers=source.integer("n_layer"),
        heads=heads,
        kv_heads=heads,
        head_dim=width // max(heads, 1),
        ffn_width=source.integer("n_inner", 4 * width),
        context_length=source.integer("n_positions"),
        norm="layer",
        eps=source.number("layer_norm_epsilon", 1e-5),
        mlp="gelu",
        activation="gelu" if activation == "gelu" else "gelu_tanh",
        rope=None,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        tied_head=source.flag("tie_word_embeddings", True),
    )


_ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh", "gelu")


def assemble(config: Config, take: Take) -> Weights:
    """Tensors by their Hugging Face names (the prefix `transformer.` may be absent.

    The loader handles that).
    """

    def transposed(name: str) -> Array:
        return np.ascontiguousarray(take(name).T)

    def block(layer: int) -> BlockWeights:
        at = f"transformer.h.{layer}."
        fused, fused_bias = transposed(at + "attn.c_attn.weight"), take(at + "attn.c_attn.bias")
        if fused.shape[0] != 3 * config.width or fused_bias.shape != (3 * config.width,):
            raise CorruptFileError(
                f"tensor {at}attn.c_attn has {fused.shape[0]} outputs instead of {3 * config.width}"
            )
        q, k, v = np.split(fused, 3)
        q_bias, k_bias, v_bias = np.split(fused_bias, 3)
        return BlockWeights(
            norm1=take(at + "ln_1.weight"),
            norm1_bias=take(at + "ln_1.bias"),
            q=q,
            q_bias=q_bias,
            k=k,
            k_bias=k_bias,
            v=v,
            v_bias=v_bias,
            o=transposed(at + "attn.c_proj.weight"),
            o_bias=take(at + "attn.c_proj.bias"),
            norm2=take(at + "ln_2.weight"),
            norm2_bias=take(at + "ln_2.bias"),
            up=transposed(at + "mlp.c_fc.weight"),
            up_bias=take(at + "mlp.c_fc.bias"),
            down=transposed(at + "mlp.c_proj.weight"),
            down_bias=take(at + "mlp.c_proj.bias"),
        )

    return Weights(
        embedding=take("transformer.wte.weight"),
        positions=take("transformer.wpe.weight"),
        blocks=tuple(block(layer) for layer in range(config.layers)),
        norm=take("transformer.ln_f.weight"),
        norm_bias=take("transformer.ln_f.bias"),
        head=None if config.tied_head else take("lm_head.weight"),
    )


# The causal mask, stored as a buffer by old checkpoints.
IGNORED = (r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",)
