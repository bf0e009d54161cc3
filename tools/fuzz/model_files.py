"""Model files: whoever made them may be anybody."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
from gguf import GGUFWriter
from safetensors.numpy import save as save_tensors
from target import JSON_WORDS, Target, card, file, path

from sottovoce.models import gguf_file, safetensors_file
from sottovoce.models.chat import ChatTemplate
from sottovoce.models.describe import describe_model
from sottovoce.models.gguf_file import GgufFile
from sottovoce.models.huggingface import HfConfig, _client_files
from sottovoce.models.llama2c import load_llama2c, read_vocabulary
from sottovoce.models.safetensors_file import SafetensorsFile
from sottovoce.models.tokenizer import Tokenizer

Tensors = SafetensorsFile | GgufFile
_TENSORS = 4  # of a file are read, the rest is alike
_VOCABULARY = 4
CHAT = ({"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"})


def _tensors(module: ModuleType, open: Callable[[Path], Tensors], data: bytes) -> None:
    """A file of tensors; its bytes come from memory, because opening files would take most of the time."""
    real = module.mapped
    module.mapped = lambda path: np.frombuffer(data, np.uint8)  # type: ignore[attr-defined]
    try:
        found = open(Path("input"))
        for name in list(found)[:_TENSORS]:
            found.read(name)
    finally:
        module.mapped = real  # type: ignore[attr-defined]


def _safetensors(data: bytes) -> None:
    _tensors(safetensors_file, SafetensorsFile, data)


def _gguf(data: bytes) -> None:
    _tensors(gguf_file, GgufFile, data)


def _gguf_seeds() -> list[bytes]:
    where = path("made.gguf")
    writer = GGUFWriter(where, "llama")
    writer.add_block_count(1)
    writer.add_array("tokens", ["a", "b"])
    writer.add_tensor("t", np.ones((4, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [where.read_bytes()]


def _config(data: bytes) -> None:
    describe_model(file("input.json", data))


def _config_seeds() -> list[bytes]:
    llama = {
        "model_type": "llama",
        "vocab_size": 258,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 24,
        "max_position_embeddings": 96,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
    }
    gpt2 = {
        "model_type": "gpt2",
        "vocab_size": 64,
        "n_embd": 16,
        "n_layer": 1,
        "n_head": 2,
        "n_positions": 32,
    }
    return [json.dumps(llama).encode(), json.dumps(gpt2).encode()]


def _tokenizer(data: bytes) -> None:
    """The document itself, then one round trip."""
    try:
        document = data.decode()
    except UnicodeDecodeError:
        return
    found = Tokenizer(document, bos_id=None, eos_ids=())
    found.decode(found.encode("héllo"))


@cache
def _beside() -> None:
    """A tokenizer of a few tokens: it is read again for every input."""
    words = {"<s>": 0, "</s>": 1, "a": 2}
    file("tokenizer.json", json.dumps({"model": {"type": "BPE", "vocab": words, "merges": []}}).encode())


def _settings(data: bytes) -> None:
    """tokenizer_config.json beside a good tokenizer, and the template in it."""
    _beside()
    where = file("tokenizer_config.json", data)
    _, template = _client_files(where.parent, HfConfig({"eos_token_id": [1, 2]}, "config.json"))
    if template is not None:
        template.render(CHAT)


def _settings_seeds() -> list[bytes]:
    named = [{"name": "default", "template": "{{ messages[0].role }}"}]
    texts = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": "{{ bos_token }}hi"}
    return [json.dumps(texts).encode(), json.dumps({"chat_template": named}).encode()]


def _template(data: bytes) -> None:
    """A template is a program: it may fail, it may not run for long."""
    ChatTemplate(data.decode("utf-8", "replace"), {"bos_token": "<s>"}).constant_beginning(CHAT)


_TEMPLATES = (
    b"{% for m in messages %}{% if loop.first and m.role == 'system' %}{{ m.content | trim }}{% endif %}"
    b"{{ '<|' + m['role'] + '|>' + m.content }}{% endfor %}{% if add_generation_prompt %}<|a|>{% endif %}",
    b"{% set ns = namespace(n=0) %}{% macro f(x) %}{{ x * 2 }}{% endmacro %}"
    b"{% for i in range(3) %}{% set ns.n = ns.n + i ** 2 %}{{ f(i) }}{% endfor %}{{ '%s' | format(ns.n) }}",
)
_TEMPLATE_WORDS = (
    *(b"range(10**9)", b"**", b"* 99999999", b"{{", b"}}", b"{% ", b" %}", b"self", b"f(f)", b"loop"),
    *(b".__class__", b"| map('upper') | join", b"for i in messages recursive", b"raise_exception('x')"),
)


def _llama2c(data: bytes) -> None:
    load_llama2c(file("input.bin", data), "tiny")


def _llama2c_seeds() -> list[bytes]:
    made = []
    for vocabulary in (_VOCABULARY, -_VOCABULARY):
        shape = (8, 12, 1, 2, 1, vocabulary, 4)  # width, ffn, layers, heads, kv heads, vocabulary, context
        numbers = 8 * (_VOCABULARY + 1) + 8 * 8 + 2 * 4 * 8 + 8 * 8 + 8 + 3 * 12 * 8 + 8 + 2 * 4 * 2
        numbers += 0 if vocabulary > 0 else 8 * _VOCABULARY
        made.append(struct.pack("<7i", *shape) + np.ones(numbers, "<f4").tobytes())
    return made


def _vocabulary(data: bytes) -> None:
    read_vocabulary(file("input.tok", data), _VOCABULARY)


def _vocabulary_seeds() -> list[bytes]:
    pieces = (b"<unk>", b"\n<s>\n", b"\n</s>\n", b"a")
    entries = (struct.pack("<fi", -i, len(piece)) + piece for i, piece in enumerate(pieces))
    return [struct.pack("<i", 7) + b"".join(entries)]


TARGETS = {
    "safetensors": Target(
        _safetensors,
        lambda: [save_tensors({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)})],
        (b'"dtype"', b'"F32"', b"[0,0]", b'"data_offsets"', b"99999999999", b"-1"),
    ),
    "gguf": Target(_gguf, _gguf_seeds),
    "config": Target(_config, _config_seeds, JSON_WORDS, json=True),
    "tokenizer": Target(_tokenizer, lambda: [card().tokenizer.document.encode()], JSON_WORDS, json=True),
    "tokenizer-config": Target(_settings, _settings_seeds, JSON_WORDS, json=True),
    "template": Target(_template, lambda: list(_TEMPLATES), _TEMPLATE_WORDS),
    "llama2c": Target(_llama2c, _llama2c_seeds),
    "vocabulary": Target(_vocabulary, _vocabulary_seeds),
}
