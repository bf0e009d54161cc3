"""A random two-block llama over bytes, with a chat template: everything a session needs, in milliseconds."""

import dataclasses
import json
from pathlib import Path

from safetensors.numpy import save_file

from sottovoce.models import llama
from sottovoce.models.chat import ChatTemplate
from sottovoce.models.model import Model, build
from sottovoce.models.tiny import CONFIG, byte_tokenizer, tiny_weights

__all__ = ["CONFIG", "TEMPLATE", "byte_tokenizer", "save_tiny_model", "tiny_model"]

TEMPLATE = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}\n{% endfor %}<s>assistant: "


def tiny_model(seed: int = 0, layers: int = CONFIG.layers) -> Model:
    c = dataclasses.replace(CONFIG, layers=layers)
    return build("tiny", c, tiny_weights(seed, layers), byte_tokenizer(), ChatTemplate(TEMPLATE))


def save_tiny_model(directory: Path, seed: int = 0) -> Path:
    """The same model as a Hugging Face directory, for commands that take a path."""
    model = tiny_model(seed)
    c = model.config
    settings = {
        "model_type": "llama",
        "vocab_size": c.vocab_size,
        "hidden_size": c.width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.ffn_width,
        "max_position_embeddings": c.context_length,
        "rms_norm_eps": c.eps,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": 256,
        "eos_token_id": 257,
    }
    tensors = {"model.embed_tokens.weight": model.weights.embedding, "model.norm.weight": model.weights.norm}
    for i, block in enumerate(model.weights.blocks):
        for ours, theirs in llama._BLOCK_NAMES.items():
            tensors[f"model.layers.{i}.{theirs}.weight"] = getattr(block, ours)
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(settings))
    (directory / "tokenizer.json").write_text(model.card.tokenizer.document)
    special = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(special))
    return directory
