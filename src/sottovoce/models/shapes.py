"""Shapes of well-known models, without weights: for estimates."""

from __future__ import annotations

from sottovoce.models.config import Config, Rope

SHAPES: dict[str, Config] = {
    "gpt2": Config(
        model_type="gpt2",
        vocab_size=50257,
        width=768,
        layers=12,
        heads=12,
        kv_heads=12,
        head_dim=64,
        ffn_width=3072,
        context_length=1024,
        norm="layer",
        mlp="gelu",
        activation="gelu_tanh",
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        tied_head=True,
    ),
    "llama-3-8b": Config(
        model_type="llama",
        vocab_size=128256,
        width=4096,
        layers=32,
        heads=32,
        kv_heads=8,
        head_dim=128,
        ffn_width=14336,
        context_length=8192,
        rope=Rope(theta=500000.0),
    ),
    "smollm2-135m": Config(
        model_type="llama",
        vocab_size=49152,
        width=576,
        layers=30,
        heads=9,
        kv_heads=3,
        head_dim=64,
        ffn_width=1536,
        context_length=8192,
        rope=Rope(theta=100000.0),
        tied_head=True,
    ),
    "stories260k": Config(
        model_type="llama",
        vocab_size=512,
        width=64,
        layers=5,
        heads=8,
        kv_heads=4,
        head_dim=8,
        ffn_width=172,
        context_length=512,
        rope=Rope(style="interleaved"),
        tied_head=True,
    ),
}
