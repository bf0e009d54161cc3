"""What is fuzzed: everything that reads bytes of somebody else.

A target takes bytes and returns; the errors of our own tree are its way of saying no, any other exception is
a finding.
"""

from __future__ import annotations

import asyncio
import json
import struct
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from safetensors.numpy import save as save_tensors

from sottovoce.bgv import SIMD, Ciphertext, Encoder, Encryptor, KeyGenerator, PublicKey
from sottovoce.correlations.marks import EPOCH_BYTES, ID_BYTES, State
from sottovoce.errors import PeerConnectionError, SottovoceError
from sottovoce.models.card import ModelCard
from sottovoce.models.describe import describe_model
from sottovoce.models.gguf_file import GgufFile
from sottovoce.models.safetensors_file import SafetensorsFile
from sottovoce.net.frame import Kind, pack_error, pack_header, parse_error, parse_header
from sottovoce.parties import SamplingOptions
from sottovoce.parties.protocol import Command, Verb
from sottovoce.parties.resume import parse_stamps
from sottovoce.proxy.app import create_app
from sottovoce.proxy.fields import parse_chat, parse_completion
from sottovoce.proxy.gateway import Gateway
from sottovoce.proxy.problems import Problem
from sottovoce.proxy.statement import Statement

REFUSALS = (SottovoceError, Problem)

CHAT = {
    "model": "tiny",
    "messages": [
        {"role": "system", "content": "be brief", "private": False},
        {"role": "user", "content": [{"type": "text", "text": "héllo"}]},
    ],
    "max_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.9,
    "stop": ["a", "b"],
    "seed": 3,
    "stream": True,
    "stream_options": {"include_usage": True},
    "n": 1,
    "tools": [],
}


@dataclass(frozen=True)
class Target:
    """run: one input. seeds: well-formed inputs to start from. words: what a mutation may put in."""

    run: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    words: tuple[bytes, ...] = ()


_JSON_WORDS = (
    *(b"null", b"true", b"-1", b"1e999", b"[]", b"{}", b'""', b'"\\ud800"', b"NaN", b"[[[["),
    *(b'"private"', b'"messages"', b'"role"', b'"content"', b'"tool"'),
    *(b"99999999999999999999", b"\xff", b"\x00"),
)


def _card() -> ModelCard:
    import sys

    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    from tiny_model import tiny_model

    return tiny_model().card


def _card_text(data: bytes) -> None:
    """A card's text, behind the checks of its compression."""
    ModelCard.from_bytes(struct.pack("<4sHI", b"SVMC", 1, len(data)) + zlib.compress(data, 1))


def _frame(data: bytes) -> None:
    if len(data) >= 8:
        header = parse_header(data[:8])
        if header.kind is Kind.ERROR:
            parse_error(data[8:])
    else:
        parse_header(data)


def _body(data: bytes) -> None:
    """The body of a request, as a web server would hand it on."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(value, dict):
        for parse in (parse_chat, parse_completion):
            try:
                parse(value, SamplingOptions())
            except REFUSALS:
                pass


@cache
def _application() -> tuple[asyncio.AbstractEventLoop, Callable[..., object]]:
    """The whole web application, with a model that is known and a server that is down."""
    card = _card()

    def connect() -> object:
        raise PeerConnectionError("down")

    gateway = Gateway("server:1", connect)  # type: ignore[arg-type]
    gateway.statement = Statement("tiny", card.model_digest, card.digest, 96, _clear(), 0)
    gateway._card = card
    gateway.start(warm=False)
    return asyncio.new_event_loop(), create_app(gateway)


def _clear() -> object:
    from sottovoce.engines.base import EngineOptions

    return EngineOptions(engine="clear")


def _http(data: bytes) -> None:
    """`METHOD path?query`, header lines, an empty line, the body. Every answer must be one of ours."""
    loop, app = _application()
    head, _, body = data.partition(b"\n\n")
    first, *lines = head.split(b"\n")
    method, _, where = first.partition(b" ")
    path, _, query = where.partition(b"?")
    headers = [(k.strip().lower(), v.strip()) for k, _, v in (line.partition(b":") for line in lines)]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method.decode("latin-1").upper()[:16],
        "scheme": "http",
        "path": path.decode("latin-1"),
        "raw_path": path,
        "root_path": "",
        "query_string": query,
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8080),
    }
    sent: list[dict[str, object]] = []

    async def call() -> None:
        parts = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, object]:
            if parts:
                return parts.pop()
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: dict[str, object]) -> None:
            sent.append(message)

        await asyncio.wait_for(app(scope, receive, send), 60)

    loop.run_until_complete(call())
    status = sent[0]["status"]
    assert isinstance(status, int) and 200 <= status < 600 and status != 500, status


def _path(suffix: str) -> Path:
    return Path(_directory()) / f"input{suffix}"


@cache
def _directory() -> str:
    return tempfile.mkdtemp(prefix="sottovoce-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)


def _safetensors(data: bytes) -> None:
    path = _path(".safetensors")
    path.write_bytes(data)
    file = SafetensorsFile(path)
    for name in list(file)[:4]:
        file.read(name)


def _gguf(data: bytes) -> None:
    path = _path(".gguf")
    path.write_bytes(data)
    GgufFile(path)


def _config(data: bytes) -> None:
    path = _path(".json")
    path.write_bytes(data)
    describe_model(path)


def _gguf_seed() -> list[bytes]:
    path = _path(".made.gguf")
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_array("tokens", ["a", "b"])
    writer.add_tensor("t", np.ones((4, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [path.read_bytes()]


def _config_seeds() -> list[bytes]:
    llama = {"model_type": "llama", "vocab_size": 258, "hidden_size": 16, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 24,
             "max_position_embeddings": 96, "rms_norm_eps": 1e-5, "hidden_act": "silu"}  # fmt: skip
    gpt2 = {
        "model_type": "gpt2",
        "vocab_size": 64,
        "n_embd": 16,
        "n_layer": 1,
        "n_head": 2,
        "n_positions": 32,
    }
    return [json.dumps(llama).encode(), json.dumps(gpt2).encode()]


def _http_seeds() -> list[bytes]:
    host = b"Host: 127.0.0.1:8080\n"
    kind = b"Content-Type: application/json\n\n"
    chat = json.dumps({**CHAT, "stream": False, "stream_options": None}).encode()
    return [
        b"GET / HTTP\n" + host,
        b"GET /v1/models\n" + host,
        b"GET /sottovoce/wire?since=3\n" + host + b"Origin: http://127.0.0.1:8080\n",
        b"GET /metrics\n" + host,
        b"POST /v1/chat/completions\n" + host + kind + chat,
        b"POST /v1/completions\n" + host + kind + b'{"model": "tiny", "prompt": "abc", "max_tokens": 2}',
        b"POST /tokenize\n" + host + kind + b'{"prompt": "abc"}',
        b"POST /detokenize\n" + host + kind + b'{"tokens": [1, 2, 3]}',
    ]


def _state_seeds() -> list[bytes]:
    state = State(3, bytes(EPOCH_BYTES), None, 7, {"ands": (5, 9)}, (bytes(ID_BYTES),))
    return [state.to_bytes()]


def _key_seeds() -> list[bytes]:
    return [KeyGenerator(SIMD).public_key().to_bytes()]


def _ciphertext_seeds() -> list[bytes]:
    keys = KeyGenerator(SIMD)
    slots = np.zeros((1, SIMD.degree), np.uint64)
    return [Encryptor(SIMD, keys.secret_key).encrypt(Encoder(SIMD).encode(slots)).to_bytes()]


TARGETS = {
    "frame": Target(
        _frame,
        lambda: [
            pack_header(Kind.DATA, 1000),
            pack_header(Kind.ERROR, 30) + pack_error(PeerConnectionError("x")),
        ],
        (b'"error"', b'"reason"', b"null", b"{"),
    ),
    "command": Target(
        lambda data: Command.parse(data),
        lambda: [Command(Verb.PREFILL, 3, (1, 2, 3)).pack(), Command(Verb.DECODE).pack()],
    ),
    "card": Target(lambda data: ModelCard.from_bytes(data), lambda: [_card().to_bytes()]),
    "card-text": Target(_card_text, lambda: [zlib.decompress(_card().to_bytes()[10:])], _JSON_WORDS),
    "pool-state": Target(lambda data: State.from_bytes(data), _state_seeds, _JSON_WORDS),
    "stamps": Target(lambda data: parse_stamps(data), lambda: [bytes(range(24))]),
    "public-key": Target(lambda data: PublicKey.from_bytes(SIMD, data), _key_seeds),
    "ciphertext": Target(lambda data: Ciphertext.from_bytes(SIMD, data), _ciphertext_seeds),
    "safetensors": Target(
        _safetensors,
        lambda: [save_tensors({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)})],
        (b'"dtype"', b'"F32"', b"[0,0]", b'"data_offsets"', b"99999999999", b"-1"),
    ),
    "gguf": Target(_gguf, _gguf_seed),
    "config": Target(_config, _config_seeds, _JSON_WORDS),
    "body": Target(
        _body, lambda: [json.dumps(CHAT).encode(), b'{"model": "m", "prompt": [1, 2]}'], _JSON_WORDS
    ),
    "http": Target(_http, _http_seeds, _JSON_WORDS),
}
