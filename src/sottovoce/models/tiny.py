"""A random two-block model over bytes: every protocol runs on it in milliseconds; it has nothing to say."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from sottovoce.models.config import Config, Rope
from sottovoce.models.model import Model, build
from sottovoce.models.tokenizer import Tokenizer
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


@functools.cache
def tiny_model(seed: int = 0) -> Model:
    """Without a chat template: text goes on as it is."""
    return build("tiny", CONFIG, tiny_weights(seed), byte_tokenizer())


def tiny_weights(seed: int = 0, layers: int = CONFIG.layers) -> Weights:
    """The same ones for the same seed."""
    rng, c = np.random.default_rng(seed), CONFIG

    def matrix(*shape: int) -> npt.NDArray[np.float32]:
        return np.asarray(rng.standard_normal(shape) / np.sqrt(shape[-1]), np.float32)

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

    embedding = matrix(c.vocab_size, c.width)
    blocks = tuple(block() for _ in range(layers))
    return Weights(embedding=embedding, blocks=blocks, norm=np.ones(c.width, np.float32))


def byte_tokenizer() -> Tokenizer:
    """Token i is the i-th byte character of byte-level BPE; 256 begins, 257 ends a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return Tokenizer(backend.to_str(), bos_id=256, eos_ids=[257])
