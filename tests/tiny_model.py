"""A random two-block llama over bytes, with a chat template: everything a session needs, in milliseconds."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from sottovoce.models import llama
from sottovoce.models.chat import ChatTemplate
from sottovoce.models.config import Config, Rope
from sottovoce.models.model import Model, build
from sottovoce.models.tokenizer import Tokenizer as OurTokenizer
from sottovoce.models.weights import BlockWeights, Weights

CONFIG = Config(
    model_type="llama",
    vocab_size=258,
    width=16,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=8,
    ffn_width=24,
    context_length=96,
    rope=Rope(),
    tied_head=True,
)
TEMPLATE = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}\n{% endfor %}<s>assistant: "


def byte_tokenizer() -> OurTokenizer:
    """Token i is the i-th byte character of byte-level BPE; <s> (256) begins, </s> (257) ends a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return OurTokenizer(backend.to_str(), bos_id=256, eos_ids=[257])


def tiny_model(seed: int = 0, layers: int = CONFIG.layers) -> Model:
    rng = np.random.default_rng(seed)
    c = dataclasses.replace(CONFIG, layers=layers)

    def matrix(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    def block() -> BlockWeights:
        return BlockWeights(
            norm1=np.ones(c.width, np.float32),
            q=matrix(c.q_width, c.width),
            k=matrix(c.kv_width, c.width),
            v=matrix(c.kv_width, c.width),
            o=matrix(c.width, c.q_width),
            norm2=np.ones(c.width, np.float32),
            gate=matrix(c.ffn_width, c.width),
            up=matrix(c.ffn_width, c.width),
            down=matrix(c.width, c.ffn_width),
        )

    weights = Weights(
        embedding=matrix(c.vocab_size, c.width),
        blocks=tuple(block() for _ in range(c.layers)),
        norm=np.ones(c.width, np.float32),
    )
    return build("tiny", c, weights, byte_tokenizer(), ChatTemplate(TEMPLATE))


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
