"""From a GGUF file to a model: metadata to `Config`, tensor names to `Weights`, vocabulary to a tokenizer.

Trap: files of architecture `llama` store query and key rows in interleaved rotary order (the converter
permutes them); they are put back into rotate-half order here. `qwen2` and `gpt2` files are stored as they
are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.errors import CorruptFileError, UnsupportedModelError
from sottovoce.models.chat import ChatTemplate
from sottovoce.models.config import Config, Rope
from sottovoce.models.gguf_file import GgufFile
from sottovoce.models.gguf_vocabulary import vocabulary
from sottovoce.models.model import Model, build
from sottovoce.models.weights import Array, BlockWeights, Weights, rotate_half_order

ARCHITECTURES = ("gpt2", "llama", "qwen2")


def load_gguf(path: Path, name: str) -> Model:
    """Raises `CorruptFileError` or `UnsupportedModelError` (which names the tensor or the metadata entry)."""
    file = GgufFile(path)
    config = describe(file)
    taken: set[str] = set()

    def take(tensor: str) -> Array:
        if tensor not in file:
            raise CorruptFileError(f"{path.name}: tensor {tensor} is missing")
        taken.add(tensor)
        return file.read(tensor)

    weights = _assemble(config, take)
    if extra := sorted(set(file) - taken):
        raise UnsupportedModelError(
            f"{path.name}: tensor {extra[0]} belongs to an operation that is not implemented for "
            f"{config.model_type}; supported: the standard {config.model_type} block"
        )
    tokenizer = vocabulary(file.metadata, path.name)
    source = file.metadata.get("tokenizer.chat_template")
    template = ChatTemplate(source) if isinstance(source, str) else None
    return build(name, config, weights, tokenizer, template)


def describe(file: GgufFile) -> Config:
    where, data = file.path.name, file.metadata
    architecture = data.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{where}: architecture {architecture!r} is not implemented; "
            f"supported: {', '.join(ARCHITECTURES)}"
        )

    def entry(key: str, kinds: type | tuple[type, ...], default: Any = None) -> Any:
        value = data.get(f"{architecture}.{key}", default)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise CorruptFileError(f"{where}: {architecture}.{key} is missing or malformed")
        return value

    heads, width = entry("attention.head_count", int), entry("embedding_length", int)
    head_dim = entry("attention.key_length", int, width // max(heads, 1))
    scaling = data.get(f"{architecture}.rope.scaling.type", "none")
    if scaling != "none":
        raise UnsupportedModelError(
            f"{where}: rotary positions (every layer) with scaling {scaling!r}; supported: no scaling"
        )
    tokens = data.get("tokenizer.ggml.tokens", [])
    common: dict[str, Any] = {
        "model_type": architecture,
        "vocab_size": entry("vocab_size", int, len(tokens) or None),
        "width": width,
        "layers": entry("block_count", int),
        "heads": heads,
        "kv_heads": entry("attention.head_count_kv", int, heads),
        "head_dim": head_dim,
        "ffn_width": entry("feed_forward_length", int),
        "context_length": entry("context_length", int),
        "tied_head": "output.weight" not in file,
    }
    if architecture == "gpt2":
        eps = entry("attention.layer_norm_epsilon", float)
        common |= {"qkv_bias": True, "o_bias": True, "mlp_bias": True}
        return Config(**common, norm="layer", eps=eps, mlp="gelu", activation="gelu_tanh", rope=None)
    rotated = entry("rope.dimension_count", int, head_dim)
    if rotated != head_dim:
        raise UnsupportedModelError(
            f"{where}: rotary positions on {rotated} of {head_dim} dimensions; supported: the whole head"
        )
    return Config(
        **common,
        eps=entry("attention.layer_norm_rms_epsilon", float),
        rope=Rope(theta=float(entry("rope.freq_base", float, 10000.0))),
        qkv_bias="blk.0.attn_q.bias" in file,
        o_bias="blk.0.attn_output.bias" in file,
    )


def _assemble(config: Config, take: Any) -> Weights:
    block = _gpt2_block if config.model_type == "gpt2" else _llama_block
    learned = config.rope is None
    return Weights(
        embedding=take("token_embd.weight"),
        positions=take("position_embd.weight") if learned else None,
        blocks=tuple(block(config, layer, take) for layer in range(config.layers)),
        norm=take("output_norm.weight"),
        norm_bias=take("output_norm.bias") if config.norm == "layer" else None,
        head=None if config.tied_head else take("output.weight"),
    )


def _llama_block(config: Config, layer: int, take: Any) -> BlockWeights:
    at = f"blk.{layer}."
    names = {
        "norm1": "attn_norm.weight",
        "q": "attn_q.weight",
        "k": "attn_k.weight",
        "v": "attn_v.weight",
        "o": "attn_output.weight",
        "norm2": "ffn_norm.weight",
        "gate": "ffn_gate.weight",
        "up": "ffn_up.weight",
        "down": "ffn_down.weight",
    }
    if config.qkv_bias:
        names |= {"q_bias": "attn_q.bias", "k_bias": "attn_k.bias", "v_bias": "attn_v.bias"}
    if config.o_bias:
        names["o_bias"] = "attn_output.bias"
    entries = {ours: take(at + theirs) for ours, theirs in names.items()}
    if config.model_type == "llama":
        for ours, heads in (("q", config.heads), ("k", config.kv_heads)):
            for key in (ours, ours + "_bias"):
                if key in entries:
                    _check_rows(entries[key], heads * config.head_dim, at + names[key])
                    entries[key] = rotate_half_order(entries[key], heads)
    return BlockWeights(**entries)


def _gpt2_block(config: Config, layer: int, take: Any) -> BlockWeights:
    at = f"blk.{layer}."
    fused, fused_bias = take(at + "attn_qkv.weight"), take(at + "attn_qkv.bias")
    _check_rows(fused, 3 * config.width, at + "attn_qkv.weight")
    _check_rows(fused_bias, 3 * config.width, at + "attn_qkv.bias")
    q, k, v = np.split(fused, 3)
    q_bias, k_bias, v_bias = np.split(fused_bias, 3)
    names = {
        "norm1": "attn_norm.weight",
        "norm1_bias": "attn_norm.bias",
        "o": "attn_output.weight",
        "o_bias": "attn_output.bias",
        "norm2": "ffn_norm.weight",
        "norm2_bias": "ffn_norm.bias",
        "up": "ffn_up.weight",
        "up_bias": "ffn_up.bias",
        "down": "ffn_down.weight",
        "down_bias": "ffn_down.bias",
    }
    entries = {ours: take(at + theirs) for ours, theirs in names.items()}
    return BlockWeights(q=q, k=k, v=v, q_bias=q_bias, k_bias=k_bias, v_bias=v_bias, **entries)


def _check_rows(array: Array, rows: int, name: str) -> None:
    if array.shape[0] != rows:
        raise CorruptFileError(f"tensor {name} has {array.shape[0]} rows, the description says {rows}")
