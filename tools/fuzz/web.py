"""What programs and web pages send to the proxy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import cache

from target import JSON_WORDS, REFUSALS, Target, card

from sottovoce.engines.base import EngineOptions
from sottovoce.errors import PeerConnectionError
from sottovoce.parties import SamplingOptions
from sottovoce.proxy.app import create_app
from sottovoce.proxy.fields import parse_chat, parse_completion
from sottovoce.proxy.gateway import Gateway
from sottovoce.proxy.statement import Statement

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

    def connect() -> object:
        raise PeerConnectionError("down")

    gateway = Gateway("server:1", connect)  # type: ignore[arg-type]
    gateway.statement = Statement("tiny", card().model_digest, card().digest, 96, EngineOptions("clear"), 0)
    gateway._card = card()
    gateway.start(warm=False)
    return asyncio.new_event_loop(), create_app(gateway)


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


def _requests() -> list[bytes]:
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


TARGETS = {
    "body": Target(
        _body,
        lambda: [json.dumps(CHAT).encode(), b'{"model": "m", "prompt": [1, 2]}'],
        JSON_WORDS,
        json=True,
    ),
    "http": Target(_http, _requests, JSON_WORDS),
}
