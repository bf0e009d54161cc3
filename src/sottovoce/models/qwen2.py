"""Qwen2 (Hugging Face `model_type: qwen2`): the Llama block with biases on q, k and v."""

from __future__ import annotations

from sottovoce.models.config import Config
from sottovoce.models.hf_config import HfConfig
from sottovoce.models.llama import IGNORED, assemble, describe_llama_like, forward

__all__ = ["IGNORED", "assemble", "describe", "forward"]


def describe(source: HfConfig) -> Config:
    """`config.json` of a qwen2 model.

    Sliding windows exist in the format and are refused when switched on.
    """
    source.require("use_sliding_window", False, "sliding-window attention", default=False)
    return describe_llama_like(source, "qwen2", qkv_bias=True)
