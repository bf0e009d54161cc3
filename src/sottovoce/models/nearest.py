"""Shapes for an estimate from any decoder's `config.json`, also one that no engine runs.

What an engine refuses (another model type, scaled rotary positions, norms of queries) changes numbers inside
a step and hardly the number of steps: an estimate takes the nearest block that engines do run, and says so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sottovoce.errors import CorruptFileError, UnsupportedModelError
from sottovoce.models.config import Config, Rope
from sottovoce.models.describe import describe_model
from sottovoce.models.hf_config import HfConfig

_MAX_JSON = 1 << 20
# Other names of the same shapes.
_NAMES = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "vocab_size": ("vocab_size",),
}
_FFN = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
_CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_GATED_GELU = ("gemma", "gemma2", "gemma3", "gemma3_text")


def nearest_model(name: str | os.PathLike[str]) -> tuple[Config, str | None]:
    """The shapes of a model, and None or what is assumed about them, in words.

    UnsupportedModelError for what is no decoder of equal blocks with one MLP each, with the name of the type.
    """
    try:
        return describe_model(name), None
    except UnsupportedModelError as refusal:
        path = Path(name).expanduser()
        file = path / "config.json" if path.is_dir() else path
        if file.suffix != ".json" or not file.is_file():
            raise
        source = HfConfig(_read(file), file.name)
        found = _shapes(source, refusal)
    kind = source.data.get("model_type", "unknown")
    return (
        found,
        f"no engine runs this {kind!s:.40} model; its shapes in blocks that engines run ({found.mlp})",
    )


def _shapes(source: HfConfig, refusal: UnsupportedModelError) -> Config:
    inner = source.data.get("text_config")
    if isinstance(inner, Mapping):  # of a model that reads images too
        source = HfConfig({**inner, "model_type": source.data.get("model_type")}, source.where)
    entries: dict[str, int] = {}
    for key, names in _NAMES.items():
        if (value := _first(source, names)) is None:
            raise refusal
        entries[key] = value
    if any((_first(source, (name,)) or 0) > 1 for name in _EXPERTS):
        raise UnsupportedModelError(
            f"{source.where}: mixtures of experts have no estimate: which expert a token takes is private"
        )
    width, heads = entries["hidden_size"], entries["num_attention_heads"]
    act = source.text("hidden_act", source.text("activation_function", "silu"))
    kind = source.data.get("model_type")
    gated = kind in _GATED_GELU or source.data.get("hidden_activation") is not None
    smooth = "gelu" in act or gated
    norm_is_layer = source.data.get("rms_norm_eps") is None and smooth and not gated
    return Config(
        model_type="gpt2" if norm_is_layer else "llama",
        vocab_size=entries["vocab_size"],
        width=width,
        layers=entries["num_hidden_layers"],
        heads=heads,
        kv_heads=_first(source, ("num_key_value_heads", "num_kv_heads")) or heads,
        head_dim=_first(source, ("head_dim",)) or width // max(heads, 1),
        ffn_width=_first(source, _FFN) or 4 * width,
        context_length=_first(source, _CONTEXT) or 2048,
        norm="layer" if norm_is_layer else "rms",
        mlp=("geglu" if gated else "gelu") if smooth else "swiglu",
        activation="gelu_tanh" if smooth else "silu",
        rope=None if norm_is_layer and kind == "gpt2" else Rope(),
        tied_head=source.flag("tie_word_embeddings", False),
    )


def _first(source: HfConfig, names: tuple[str, ...]) -> int | None:
    for name in names:
        if source.data.get(name) is not None:
            return source.integer(name)
    return None


def _read(path: Path) -> Any:
    if path.stat().st_size > _MAX_JSON:
        raise CorruptFileError(f"{path.name} is too large for a model's description")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path.name} is not JSON: {error}") from None
