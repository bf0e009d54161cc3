"""Shared by the model tests: fixtures, real models if they are there, a GGUF writer for tiny models."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import gguf
import numpy as np
import pytest

from sottovoce.errors import UnknownModelError
from sottovoce.models import Model, load_model

FIXTURES = Path(__file__).parent / "fixtures"
TINY = ("gpt2", "llama", "qwen2")
STORIES = Path(
    os.environ.get("SOTTOVOCE_STORIES260K")
    or Path(__file__).parent.parent.parent / "shared" / "data" / "stories260K"
)


@functools.cache
def tiny(name: str) -> Model:
    return load_model(FIXTURES / f"tiny-{name}")


@functools.cache
def _smollm2() -> Model | str:
    try:
        return load_model("smollm2-135m")
    except UnknownModelError as error:
        return str(error)


def smollm2() -> Model:
    model = _smollm2()
    if isinstance(model, str):
        pytest.skip(model)
    return model


@functools.cache
def _stories() -> Model | None:
    return load_model(STORIES) if STORIES.exists() else None


def stories() -> Model:
    model = _stories()
    if model is None:
        pytest.skip("stories260K is absent; set SOTTOVOCE_STORIES260K to its directory")
    return model


def permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rotate-half rows to the interleaved order that llama GGUF files hold."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def write_gguf(path: Path, model: Model, quantized: bool = False, **overrides: object) -> None:
    """A GGUF file of a tiny llama, qwen2 or gpt2 model; `overrides` add or replace metadata."""
    c, kind = model.config, model.config.model_type
    writer = gguf.GGUFWriter(path, kind)
    writer.add_context_length(c.context_length)
    writer.add_embedding_length(c.width)
    writer.add_block_count(c.layers)
    writer.add_feed_forward_length(c.ffn_width)
    writer.add_head_count(c.heads)
    writer.add_head_count_kv(c.kv_heads)
    writer.add_vocab_size(c.vocab_size)
    if c.rope is not None:
        writer.add_layer_norm_rms_eps(c.eps)
        writer.add_rope_freq_base(c.rope.theta)
    else:
        writer.add_layer_norm_eps(c.eps)
    for key, value in overrides.items():
        writer.add_string(key.replace("__", "."), str(value))
    for name, array in model.weights.named():
        for theirs, data in _gguf_tensor(name, array, model):
            if quantized and data.ndim == 2 and data.shape[1] % 32 == 0:
                q8 = gguf.GGMLQuantizationType.Q8_0
                writer.add_tensor(theirs, gguf.quantize(data, q8), raw_dtype=q8)
            else:
                writer.add_tensor(theirs, np.ascontiguousarray(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_OUTER = {
    "embedding": "token_embd.weight",
    "positions": "position_embd.weight",
    "norm": "output_norm.weight",
    "norm_bias": "output_norm.bias",
    "head": "output.weight",
}
_INNER = {
    "norm1": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "norm2": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}


def _gguf_tensor(name: str, array: np.ndarray, model: Model) -> list[tuple[str, np.ndarray]]:
    if name in _OUTER:
        return [(_OUTER[name], array)]
    _, layer, entry = name.split(".")
    base, suffix = (entry[:-5], "bias") if entry.endswith("_bias") else (entry, "weight")
    c, block = model.config, model.weights.blocks[int(layer)]
    if c.model_type == "gpt2" and base in "qkv":
        if base != "q":
            return []
        parts = [getattr(block, part + entry[1:]) for part in "qkv"]
        return [(f"blk.{layer}.attn_qkv.{suffix}", np.concatenate(parts))]
    if c.model_type == "llama" and base in "qk":
        array = permute(array, c.heads if base == "q" else c.kv_heads)
    return [(f"blk.{layer}.{_INNER[base]}.{suffix}", array)]
