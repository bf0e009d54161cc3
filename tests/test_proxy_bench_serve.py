"""Requests as vLLM's `bench serve` sends them, read as it reads the answers.

Both of its ways: `--backend openai` asks /v1/completions, `--backend openai-chat` the other address.
"""

import http.client
import json
import threading
from urllib.parse import urlsplit

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from proxies import Proxied  # noqa: E402
from sottovoce.models.model import greedy  # noqa: E402

COMMON = {"model": "tiny", "stream": True, "stream_options": {"include_usage": True}, "temperature": 0.0}


def text_request(text):
    return "/v1/completions", {
        **COMMON,
        "prompt": text,
        "repetition_penalty": 1.0,
        "max_tokens": 4,
        "logprobs": None,
        "ignore_eos": True,
    }


def chat_request(text):
    content = [{"type": "text", "text": text}]
    return "/v1/chat/completions", {
        **COMMON,
        "messages": [{"role": "user", "content": content}],
        "max_completion_tokens": 4,
        "ignore_eos": True,
    }


@pytest.fixture(scope="module")
def proxied():
    with Proxied().running(keep_alive=0.02) as running:
        yield running


def ask(proxied, path, body, arrived=lambda piece: None):
    """(text, usage, whether it ended well). White space around what arrives at once is lost, as there."""
    address = urlsplit(proxied.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=120)
    headers = {"Content-Type": "application/json", "Authorization": "Bearer x", "x-request-id": "bench-1"}
    connection.request("POST", path, json.dumps(body), headers)
    reply = connection.getresponse()
    assert reply.status == 200
    buffer, messages = "", []
    while piece := reply.read1(1 << 16):
        arrived(piece)
        buffer += piece.strip().decode()
        while "\n\n" in buffer:
            message, buffer = buffer.split("\n\n", 1)
            messages.append(message.strip())
        if buffer.startswith("data: ") and whole(buffer[6:]):
            messages.append(buffer)
            buffer = ""
    connection.close()
    assert not buffer
    events = [m.removeprefix("data: ") for m in messages if m and not m.startswith(":")]
    parsed = [json.loads(event) for event in events[:-1]]
    choices = [data["choices"][0] for data in parsed if data["choices"]]
    text = "".join(c["text"] if "text" in c else c["delta"].get("content") or "" for c in choices)
    return text, parsed[-1]["usage"], events[-1] == "[DONE]"


def whole(text):
    try:
        return text == "[DONE]" or json.loads(text) is not None
    except ValueError:
        return False


def expected(proxied, path, text):
    card = proxied.model.card
    tokens = (card.chat(text) if "chat" in path else card.plain(text)).tokens
    return card.tokenizer.decode(greedy(proxied.model, tokens, 4))


@pytest.mark.parametrize("request_of", [text_request, chat_request])
def test_four_at_a_time(proxied, request_of):
    """One session answers them in turn: the rest waits, and hears comments."""
    found = {}

    def one(i):
        path, body = request_of(f"request {i}")
        found[i] = ask(proxied, path, body), expected(proxied, path, f"request {i}")

    threads = [threading.Thread(target=one, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(found) == [0, 1, 2, 3]
    for (text, usage, ended), wanted in found.values():
        assert text == wanted and usage["completion_tokens"] == 4 and ended


@pytest.mark.parametrize("request_of", [text_request, chat_request])
def test_comments_between_tokens_cost_no_token(proxied, request_of):
    seen = []

    def arrived(piece):
        """The second token waits until a comment has come, and others may."""
        seen.append(piece)
        if b"data: {" in piece:
            proxied.gate.clear()
        if b": sottovoce: " in piece:
            proxied.gate.set()

    path, body = request_of("slow")
    proxied.gate.clear()
    try:
        text, usage, ended = ask(proxied, path, body, arrived)
    finally:
        proxied.gate.set()
    assert any(b": sottovoce: " in piece for piece in seen)
    assert text == expected(proxied, path, "slow") and usage["completion_tokens"] == 4 and ended
