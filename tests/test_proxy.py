"""The proxy as OpenAI's own client and curl meet it; a tiny model on the engine without cryptography."""

import asyncio
import http.client
import json
import shutil
import subprocess
import threading
from urllib.parse import urlsplit

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
openai = pytest.importorskip("openai")

from proxies import Proxied  # noqa: E402
from sottovoce.models.model import greedy  # noqa: E402
from sottovoce.parties import GenerationOptions  # noqa: E402
from sottovoce.proxy.gateway import Plan  # noqa: E402
from tiny_model import tiny_model  # noqa: E402

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def proxied():
    with Proxied(plan=Plan(waiting=1, defaults=GenerationOptions(max_tokens=8))).running() as running:
        yield running


@pytest.fixture
def client(proxied):
    with openai.OpenAI(base_url=proxied.url + "/v1", api_key="unused", max_retries=0) as client:
        yield client


def call(proxied, method, path, body=None, headers=None):
    """One bare request: (status, headers, body)."""
    address = urlsplit(proxied.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=300)
    raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    sent = {"Content-Type": "application/json"} if raw is not None else {}
    connection.request(method, path, raw, {**sent, **(headers or {})})
    reply = connection.getresponse()
    content = reply.read()
    connection.close()
    return reply.status, reply.headers, content


def expected(proxied, messages, n=8):
    tokens = proxied.model.card.chat(messages).tokens
    return proxied.model.card.tokenizer.decode(greedy(proxied.model, tokens, n))


def test_the_answer_is_the_models(proxied, client):
    done = client.chat.completions.create(model="tiny", messages=HELLO)
    assert done.choices[0].message.content == expected(proxied, HELLO)
    assert done.choices[0].finish_reason in ("length", "stop") and done.object == "chat.completion"
    usage = done.usage
    assert usage.completion_tokens == 8 and usage.total_tokens == usage.prompt_tokens + 8
    mine = usage.sottovoce
    assert mine["rounds"] > 0 and mine["bytes_up"] > 0 and mine["bytes_down"] > 0 and mine["seconds"] > 0
    assert mine["public_tokens"] + mine["private_tokens"] == usage.prompt_tokens
    assert mine["engine"] == "clear" and mine["prepared_tokens"] is None and not mine["notes"]


def test_a_stream_is_the_same_answer(proxied, client):
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant" and not chunks[0].choices[0].delta.content
    *pieces, last, usage = chunks
    assert "".join(c.choices[0].delta.content or "" for c in pieces) == expected(proxied, HELLO)
    assert last.choices[0].finish_reason and not usage.choices and usage.usage.completion_tokens == 8
    assert all(c.usage is None for c in (*pieces, last)) and len({c.id for c in chunks}) == 1
    assert len(chunks) >= 8  # a chunk a token, where tokens are text


def test_without_usage_the_stream_has_none(client):
    chunks = list(client.chat.completions.create(model="tiny", messages=HELLO, stream=True, max_tokens=2))
    assert all(c.choices and c.usage is None for c in chunks)


def test_completions_as_whole_and_as_stream(proxied, client):
    text = proxied.model.card.plain("abc").tokens
    wanted = proxied.model.card.tokenizer.decode(greedy(proxied.model, text, 4))
    assert client.completions.create(model="tiny", prompt="abc", max_tokens=4).choices[0].text == wanted
    parts = list(client.completions.create(model="tiny", prompt=["abc"], max_tokens=4, stream=True))
    assert "".join(part.choices[0].text for part in parts) == wanted
    ids = client.completions.create(model="tiny", prompt=list(text), max_tokens=4)
    assert ids.choices[0].text == wanted and ids.usage.sottovoce["public_tokens"] == 0


def test_the_asynchronous_client(proxied):
    async def run():
        async with openai.AsyncOpenAI(base_url=proxied.url + "/v1", api_key="x", max_retries=0) as client:
            whole = await client.chat.completions.create(model="tiny", messages=HELLO)
            stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
            text = "".join([c.choices[0].delta.content or "" async for c in stream])
            return whole.choices[0].message.content, text

    assert asyncio.run(run()) == (expected(proxied, HELLO),) * 2


def test_a_longer_history_is_not_computed_again(proxied, client):
    messages = [{"role": "system", "content": "short"}, {"role": "user", "content": "first?"}]
    first = client.chat.completions.create(model="tiny", messages=messages, max_tokens=4)
    held = first.usage.prompt_tokens + 3  # the last token sampled was never sent
    said = first.choices[0].message.content
    messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "second?"}]
    second = client.chat.completions.create(model="tiny", messages=messages, max_tokens=4)
    assert second.usage.prompt_tokens_details.cached_tokens == held
    # Asked again, only the last token is sent.
    third = client.chat.completions.create(model="tiny", messages=messages, max_tokens=4)
    assert third.usage.prompt_tokens_details.cached_tokens == third.usage.prompt_tokens - 1
    assert third.choices[0].message.content == second.choices[0].message.content


def test_public_messages_are_a_beginning(proxied, client):
    document = {"role": "system", "content": "a public page", "private": False}
    done = client.chat.completions.create(model="tiny", messages=[document, *HELLO], max_tokens=2)
    private = client.chat.completions.create(
        model="tiny", messages=[{**document, "private": True}, *HELLO], max_tokens=2
    )
    assert done.choices[0].message.content == private.choices[0].message.content
    more = done.usage.sottovoce["public_tokens"] - private.usage.sottovoce["public_tokens"]
    assert more >= len("a public page") and not done.usage.sottovoce["notes"]
    # A private text that was public in another session is not taken from there.
    assert private.usage.prompt_tokens_details.cached_tokens == 0


def test_a_late_mark_means_nothing_and_is_said(client):
    messages = [*HELLO, {"role": "user", "content": "page", "private": False}, *HELLO]
    done = client.chat.completions.create(model="tiny", messages=messages, max_tokens=1)
    assert "only a beginning can be public" in done.usage.sottovoce["notes"][0]
    plain = [{**m, "private": True} for m in messages]
    same = client.chat.completions.create(model="tiny", messages=plain, max_tokens=1)
    assert same.usage.sottovoce["public_tokens"] == done.usage.sottovoce["public_tokens"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"min_tokens": 4}, "min_tokens"),
        ({"stop_token_ids": [3]}, "stop_token_ids"),
        ({"chat_template": "{{ messages }}"}, "chat_template"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 0}, "max_completion_tokens"),
        ({"stop": [1]}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "a", "private": False}]}, "messages"),
        ({"stream_options": {}}, "stream_options"),
        ({"model": None}, "model"),
    ],
)
def test_what_cannot_be_honoured_is_refused(proxied, client, fields, param):
    body = {"model": "tiny", "messages": HELLO, **fields}
    status, _, content = call(proxied, "POST", "/v1/chat/completions", body)
    error = json.loads(content)["error"]
    assert (status, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert set(error) == {"message", "type", "param", "code"}


def test_what_clients_send_by_default_changes_nothing(proxied):
    """Neutral values, labels, and fields that are nobody's."""
    body = {
        "n": 1, "best_of": 1, "logprobs": None, "top_logprobs": 0, "tools": [], "tool_choice": "auto",
        "presence_penalty": 0.0, "repetition_penalty": 1.0, "logit_bias": {},
        "response_format": {"type": "text"}, "service_tier": "auto", "parallel_tool_calls": True,
        "user": "ann", "metadata": {"a": "b"}, "store": False,
        "stream_options": None, "seed": 7, "stop": None, "max_tokens": 8, "skip_special_tokens": True,
        "min_tokens": 0, "some_new_field": {"x": 1},
    }  # fmt: skip
    status, _, content = call(
        proxied, "POST", "/v1/chat/completions", {"model": "tiny", "messages": HELLO, **body}
    )
    assert status == 200, content
    assert json.loads(content)["choices"][0]["message"]["content"] == expected(proxied, HELLO)


def test_ignore_eos_goes_on_behind_the_end_token():
    """As load generators ask for it, to have answers of one length."""
    model = tiny_model()
    tokens = greedy(model, model.card.chat(HELLO).tokens, 8)
    model.card.tokenizer.eos_ids = (tokens[3],)
    length = tokens.index(tokens[3])
    body = {"model": "tiny", "messages": HELLO, "max_completion_tokens": 8}
    with Proxied(model).running() as proxied:
        found = [
            json.loads(call(proxied, "POST", "/v1/chat/completions", {**body, **more})[2])
            for more in ({}, {"ignore_eos": False}, {"ignore_eos": True})
        ]
    ends = [(done["usage"]["completion_tokens"], done["choices"][0]["finish_reason"]) for done in found]
    assert ends == [(length, "stop"), (length, "stop"), (8, "length")]


def test_errors_reach_the_sdk_as_its_own(client):
    with pytest.raises(openai.BadRequestError, match="n is not supported"):
        client.chat.completions.create(model="tiny", messages=HELLO, n=2)
    with pytest.raises(openai.NotFoundError, match="'tiny'"):
        client.chat.completions.create(model="gpt-4", messages=HELLO)
    with pytest.raises(openai.BadRequestError, match="context is 96"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x" * 200}])
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=1000, stream=True)


def test_models_carry_the_privacy_statement(proxied, client):
    (model,) = client.models.list().data
    assert model.id == "tiny" and model.max_model_len == 96
    assert "the server sees every token" in model.sottovoce["privacy"]["server"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_tokenize_and_back(proxied):
    status, _, content = call(proxied, "POST", "/tokenize", {"model": "tiny", "messages": HELLO})
    found = json.loads(content)
    assert status == 200 and found["tokens"] == list(proxied.model.card.chat(HELLO).tokens)
    assert found["count"] == len(found["tokens"]) and 0 < found["public_count"] < found["count"]
    status, _, content = call(proxied, "POST", "/detokenize", {"tokens": found["tokens"]})
    assert json.loads(content)["prompt"].endswith("assistant: ")
    assert call(proxied, "POST", "/detokenize", {"tokens": [1 << 40]})[0] == 400


def test_health_and_metrics(proxied):
    status, _, content = call(proxied, "GET", "/health")
    assert status == 200 and json.loads(content)["connected"] is True
    status, headers, content = call(proxied, "GET", "/metrics")
    text = content.decode()
    assert status == 200 and headers["content-type"].startswith("text/plain; version=0.0.4")
    for name in (
        "vllm:generation_tokens_total",
        "vllm:time_to_first_token_seconds_bucket",
        "sottovoce_bytes_total",
    ):
        assert name in text
    assert "hello" not in text and "public page" not in text


def test_several_requests_wait_or_are_told_to(proxied):
    """One session, one waiting: the third is refused. Then both are answered."""
    proxied.gate.clear()
    answers = []

    def ask():
        answers.append(call(proxied, "POST", "/v1/chat/completions", {"model": "tiny", "messages": HELLO}))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: proxied.gateway.load == (1, 1))
        body = {"model": "tiny", "messages": HELLO, "stream": True}
        status, headers, content = call(proxied, "POST", "/v1/chat/completions", body)
        assert status == 429 and int(headers["retry-after"]) >= 1
        assert json.loads(content)["error"]["code"] == "rate_limit_exceeded"
    finally:
        proxied.gate.set()
    for thread in threads:
        thread.join(300)
    assert [status for status, _, _ in answers] == [200, 200]


def test_leaving_ends_the_answer_and_frees_the_session(proxied, client):
    proxied.gate.clear()
    body = {"model": "tiny", "messages": HELLO, "stream": True, "max_tokens": 60}
    stream = client.chat.completions.create(**body)
    next(iter(stream))
    wait_for(lambda: proxied.gateway.load == (1, 0))
    cancelled = proxied.gateway.metrics.finished
    before = cancelled.value(finished_reason="cancelled")
    (job,) = proxied.gateway._running.values()
    stream.close()
    wait_for(job.cancelled.is_set)
    proxied.gate.set()
    wait_for(lambda: proxied.gateway.load == (0, 0))
    assert cancelled.value(finished_reason="cancelled") == before + 1
    assert client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=1).choices


def test_a_waiting_request_can_be_given_up(proxied):
    """It never reaches the server."""
    proxied.gate.clear()
    slow = threading.Thread(
        target=call, args=(proxied, "POST", "/v1/completions", {"model": "tiny", "prompt": "a"})
    )
    slow.start()
    try:
        wait_for(lambda: proxied.gateway.load == (1, 0))
        address = urlsplit(proxied.url)
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=300)
        body = json.dumps({"model": "tiny", "prompt": "b", "stream": True}).encode()
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        wait_for(lambda: proxied.gateway.load == (1, 1))
        connection.close()
    finally:
        proxied.gate.set()
    slow.join(300)
    wait_for(lambda: proxied.gateway.load == (0, 0))


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_curl_sees_events_as_they_happen(proxied):
    body = json.dumps({"model": "tiny", "messages": HELLO, "stream": True, "max_tokens": 3})
    proxied.gate.clear()
    process = subprocess.Popen(
        ["curl", "-sN", "--max-time", "60", proxied.url + "/v1/chat/completions"]
        + ["-H", "Content-Type: application/json", "-d", body],
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        done = ""
        for line in process.stdout:
            done += line
            if '"content": "' in line and '"content": ""' not in line:
                break  # a first word, while the second one cannot be made yet
        assert process.poll() is None
        proxied.gate.set()
        done += process.stdout.read()
    lines = [line for line in done.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]" and process.returncode == 0
    assert all(line.startswith(("data: {", ": sottovoce: ", ":")) for line in lines[:-1])


def wait_for(condition):
    """No upper bound but the test's own: a busy machine is no failure."""
    tick = threading.Event()
    while not condition():
        tick.wait(0.01)
