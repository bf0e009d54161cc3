"""llama2.c checkpoints (version 0: seven integers, then float32 tensors) and their tokenizer files.

Small Llama models such as stories260K come in this form. The rotary order is interleaved and stays so; the
two rotary tables at the end of the file are skipped. Format: https://github.com/karpathy/llama2.c
(export.py, legacy export).
"""

from __future__ import annotations

import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from sottovoce.errors import CorruptFileError, UnsupportedModelError
from sottovoce.models.config import Config, Rope
from sottovoce.models.model import Model, build
from sottovoce.models.tokenizer import Tokenizer
from sottovoce.models.weights import Array, BlockWeights, Weights

_HEADER = struct.Struct("<7i")
_BOS, _EOS, _FIRST_BYTE = 1, 2, 3
_BYTE_TOKEN = re.compile(rb"<0x([0-9A-F]{2})>")


def load_llama2c(path: Path, name: str) -> Model:
    """`path` is the checkpoint.

    Its tokenizer is `tok<vocabulary>.bin` or `tokenizer.bin` beside it, if there.
    """
    data = path.read_bytes()
    config = _describe(data, path.name)
    weights = _weights(config, data, path.name)
    tokenizer = None
    for candidate in (f"tok{config.vocab_size}.bin", "tokenizer.bin"):
        if (path.parent / candidate).is_file():
            tokenizer = read_vocabulary(path.parent / candidate, config.vocab_size)
            break
    return build(name, config, weights, tokenizer)


def _describe(data: bytes, where: str) -> Config:
    if len(data) < _HEADER.size:
        raise CorruptFileError(f"{where}: shorter than a llama2.c header")
    if data[:4] == b"24ka":
        raise UnsupportedModelError(f"{where}: llama2.c checkpoint of a later version; supported: version 0")
    width, ffn, layers, heads, kv_heads, vocab, context = _HEADER.unpack_from(data)
    return Config(
        model_type="llama",
        vocab_size=abs(vocab),
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=width // heads if heads > 0 else 0,
        ffn_width=ffn,
        context_length=context,
        eps=1e-5,
        rope=Rope(theta=10000.0, style="interleaved"),
        tied_head=vocab > 0,
    )


def _weights(c: Config, data: bytes, where: str) -> Weights:
    # Each kind of tensor is stored for all layers together.
    stacked: dict[str, tuple[int, ...]] = {
        "embedding": (c.vocab_size, c.width),
        "norm1": (c.layers, c.width),
        "q": (c.layers, c.q_width, c.width),
        "k": (c.layers, c.kv_width, c.width),
        "v": (c.layers, c.kv_width, c.width),
        "o": (c.layers, c.width, c.q_width),
        "norm2": (c.layers, c.width),
        "gate": (c.layers, c.ffn_width, c.width),
        "down": (c.layers, c.width, c.ffn_width),
        "up": (c.layers, c.ffn_width, c.width),
        "norm": (c.width,),
        "rotary tables": (2, c.context_length, c.head_dim // 2),
    }
    if not c.tied_head:
        stacked["head"] = (c.vocab_size, c.width)
    needed = _HEADER.size + 4 * sum(math.prod(shape) for shape in stacked.values())
    if len(data) != needed:
        raise CorruptFileError(f"{where}: {len(data)} bytes, the header describes {needed}")
    arrays: dict[str, Array] = {}
    at = _HEADER.size
    for name, shape in stacked.items():
        count = math.prod(shape)
        arrays[name] = np.frombuffer(data, "<f4", count, at).astype(np.float32).reshape(shape)
        at += 4 * count
    per_layer = ("norm1", "q", "k", "v", "o", "norm2", "gate", "up", "down")
    return Weights(
        embedding=arrays["embedding"],
        blocks=tuple(
            BlockWeights(**{name: arrays[name][layer] for name in per_layer}) for layer in range(c.layers)
        ),
        norm=arrays["norm"],
        head=arrays.get("head"),
    )


def read_vocabulary(path: Path, size: int) -> Tokenizer:
    """`tok*.bin`.

    For each token a float32 score, a length and its bytes. Merging prefers the highest score.
    """
    pieces, scores = _pieces(path.read_bytes(), size, path.name)
    document = _tokenizer_document(pieces, scores)
    return Tokenizer(json.dumps(document, ensure_ascii=False), bos_id=_BOS, eos_ids=(_EOS, _BOS))


def _pieces(data: bytes, size: int, where: str) -> tuple[list[bytes], list[float]]:
    pieces: list[bytes] = []
    scores: list[float] = []
    at = 4
    for _ in range(size):
        if at + 8 > len(data):
            raise CorruptFileError(f"{where}: ends before token {len(pieces)} of {size}")
        score, length = struct.unpack_from("<fi", data, at)
        at += 8
        if not 0 <= length <= len(data) - at or not math.isfinite(score):
            raise CorruptFileError(f"{where}: token {len(pieces)} is malformed")
        pieces.append(data[at : at + length])
        scores.append(score)
        at += length
    if at != len(data):
        raise CorruptFileError(f"{where}: {len(data) - at} bytes behind the last token")
    return pieces, scores


def _tokenizer_document(pieces: list[bytes], scores: list[float]) -> dict[str, Any]:
    """The same vocabulary as a `tokenizer.json`: BPE with byte fallback, merges ordered by falling score."""
    names = [_spelling(i, piece) for i, piece in enumerate(pieces)]
    vocabulary = {name: i for i, name in enumerate(names)}
    if len(vocabulary) != len(names):
        raise CorruptFileError("the vocabulary holds a token twice")
    words = [i for i in range(_FIRST_BYTE, len(names)) if not _BYTE_TOKEN.fullmatch(pieces[i])]
    merges = []
    for i in sorted(words, key=lambda i: (-scores[i], i)):
        name = names[i]
        merges += [
            [name[:cut], name[cut:]]
            for cut in range(1, len(name))
            if name[:cut] in vocabulary and name[cut:] in vocabulary
        ]
    special = [
        {"id": i, "content": names[i], "special": True, "normalized": False} for i in range(_FIRST_BYTE)
    ]
    common = {"single_word": False, "lstrip": False, "rstrip": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [entry | common for entry in special],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": names[0],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def _spelling(token: int, piece: bytes) -> str:
    if token < _FIRST_BYTE:
        return ("<unk>", "<s>", "</s>")[token]
    try:
        return piece.decode("utf-8").replace(" ", "▁")
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"token {token} of the vocabulary is not UTF-8") from error
