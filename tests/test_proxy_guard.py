"""What the proxy does not do for strangers, and what it does when its server is slow, gone or back again."""

import http.client
import json
import socket
import threading
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
openai = pytest.importorskip("openai")

from proxies import Proxied  # noqa: E402
from sottovoce.engines.base import EngineOptions  # noqa: E402
from sottovoce.errors import PeerConnectionError, PeerGoneError, ServerBusyError, UsageError  # noqa: E402
from sottovoce.parties import CardCache, Client, GenerationOptions, SamplingOptions  # noqa: E402
from sottovoce.parties.status import names_this_machine  # noqa: E402
from sottovoce.proxy.app import create_app  # noqa: E402
from sottovoce.proxy.body import MAX_BODY  # noqa: E402
from sottovoce.proxy.compose import Histories, compose  # noqa: E402
from sottovoce.proxy.fields import parse_chat  # noqa: E402
from sottovoce.proxy.gateway import Gateway, Plan  # noqa: E402
from sottovoce.proxy.problems import problem_of  # noqa: E402
from sottovoce.proxy.serving import WebServer  # noqa: E402
from sottovoce.proxy.statement import Statement, StatementFile  # noqa: E402
from sottovoce.proxy.wire import Wire  # noqa: E402
from test_proxy import HELLO, call, wait_for  # noqa: E402
from tiny_model import tiny_model  # noqa: E402

BODY = {"model": "tiny", "messages": HELLO, "max_tokens": 2}


@pytest.fixture(scope="module")
def proxied():
    with Proxied().running(keep_alive=0.05, patience=0.1) as running:
        yield running


def port(proxied):
    return urlsplit(proxied.url).port


def test_the_page_does_not_show_the_key_of_a_saved_session():
    wire = Wire()
    client = SimpleNamespace(channel=SimpleNamespace(), ledger=SimpleNamespace(place=("keep", "")))
    wire.watch(client)
    client.channel.tap_sent(memoryview(b"name and key"))
    client.ledger.place = ("decode", "embed")
    client.channel.tap(memoryview(b"shares"))
    found = wire.since(0)
    assert [sample["hex"] for sample in found["samples"]] == ["", b"shares".hex()]
    assert found["bytes"] == {"server": 12, "you": 6}


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "", "[::2]"]
)
def test_names_bent_to_this_address_are_refused(proxied, host):
    headers = {"Host": host.format(port=port(proxied))}
    asked = [("GET", path, None) for path in ("/", "/v1/models", "/metrics", "/health", "/sottovoce/wire")]
    for method, path, body in (*asked, ("POST", "/tokenize", {})):
        status, _, content = call(proxied, method, path, body, headers)
        assert status == 403 and "localhost only" in json.loads(content)["error"]["message"]


@pytest.mark.parametrize("host", ["localhost:{port}", "127.0.0.1:{port}", "[::1]:{port}", "LOCALHOST"])
def test_this_machines_names_are_not(proxied, host):
    assert call(proxied, "GET", "/health", headers={"Host": host.format(port=port(proxied))})[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_other_pages_get_nothing(proxied, headers):
    assert call(proxied, "POST", "/v1/chat/completions", BODY, headers)[0] == 403
    assert call(proxied, "GET", "/sottovoce/wire", None, headers)[0] == 403


def test_the_page_itself_gets_answers(proxied):
    headers = {"Origin": proxied.url, "Sec-Fetch-Site": "same-origin"}
    assert call(proxied, "POST", "/v1/chat/completions", BODY, headers)[0] == 200


def test_forms_cannot_ask(proxied):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        status, _, _ = call(proxied, "POST", "/v1/chat/completions", BODY, {"Content-Type": kind})
        assert status == 415


def test_every_answer_carries_the_security_headers(proxied):
    for path in ("/", "/page/app.js", "/v1/models", "/nowhere", "/metrics"):
        _, headers, content = call(proxied, "GET", path)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff" and "access-control-allow-origin" not in headers
        assert b"style=" not in content or path != "/"


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"", 400), (b"[]", 400), (b"{", 400), (b"\xff", 400), (b'{"a":NaN}', 400), (b"[" * 100_000, 400)],
)
def test_bodies_that_are_no_requests(proxied, body, status):
    found, _, content = call(proxied, "POST", "/v1/chat/completions", body)
    assert found == status and json.loads(content)["error"]["type"] == "invalid_request_error"


def test_bodies_are_bounded(proxied):
    address = urlsplit(proxied.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=300)
    connection.putrequest("POST", "/tokenize")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(MAX_BODY + 2))
    connection.endheaders()
    connection.send(b" " * (MAX_BODY + 1))
    assert connection.getresponse().status == 413
    connection.close()


def test_unknown_addresses_and_methods(proxied):
    for method, path, status in (
        ("GET", "/nowhere", 404),
        ("GET", "/page/../app.py", 404),
        ("GET", "/page/%2e%2e%2fapp.py", 404),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/chat/completions", 405),
        ("GET", "/sottovoce/wire?since=x", 400),
    ):
        found, _, content = call(proxied, method, path)
        assert found == status and "error" in json.loads(content), path


def test_a_long_wait_is_no_timeout(proxied):
    """Comments in a stream and spaces before an object keep a client waiting; its parser does not mind."""
    with openai.OpenAI(base_url=proxied.url + "/v1", api_key="x", max_retries=0) as client:
        for stream in (True, False):
            proxied.gate.clear()
            opening = threading.Timer(0.5, proxied.gate.set)
            opening.start()
            done = client.chat.completions.create(**BODY, stream=stream)
            if stream:
                done = list(done)[-1]
            assert done.choices[0].finish_reason
            opening.join()


def test_an_answer_in_one_piece_begins_with_spaces(proxied):
    proxied.gate.clear()
    connection = begun(proxied, BODY)
    reply = connection.getresponse()
    assert reply.status == 200 and reply.read(3) == b"   "
    proxied.gate.set()
    assert json.loads(reply.read())["usage"]["completion_tokens"] == 2
    connection.close()


def begun(proxied, body):
    """A connection on which a chat was asked for."""
    address = urlsplit(proxied.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=120)
    sent = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), sent)
    return connection


def test_progress_is_told_while_waiting(proxied):
    proxied.gate.clear()
    connection = begun(proxied, {**BODY, "stream": True})
    reply = connection.getresponse()
    assert reply.headers["content-type"].startswith("text/event-stream")
    comments = 0
    while comments < 3:
        comments += reply.readline().startswith(b": sottovoce: ")
    proxied.gate.set()
    assert reply.read().endswith(b"data: [DONE]\n\n")
    connection.close()


def test_a_session_that_ended_is_begun_anew():
    """A server may end idle sessions: the next request does not notice."""
    with Proxied().running() as proxied:
        assert call(proxied, "POST", "/v1/chat/completions", BODY)[0] == 200
        (idle,) = proxied.gateway._live._idle
        idle.channel.close()
        status, _, content = call(proxied, "POST", "/v1/chat/completions", BODY)
        usage = json.loads(content)["usage"]
        assert status == 200 and usage["prompt_tokens_details"]["cached_tokens"] == 0


def test_with_the_server_down_models_are_known_and_answers_are_not(tmp_path):
    """Also by a proxy that was started after the server went away."""
    statements, cards = StatementFile(tmp_path / "proxy", "server:1"), CardCache(tmp_path / "cards")
    first = Proxied(statements=statements)
    first.gateway._connect = lambda: Client.connect(first.address, first.wish, None, cards)
    with first.running() as proxied:
        assert call(proxied, "POST", "/v1/chat/completions", BODY)[0] == 200

    def connect():
        raise PeerConnectionError("cannot connect to server:1: nothing listens there")

    gateway = Gateway("server:1", connect, statements=statements, cards=cards)
    with WebServer(create_app(gateway)) as web:
        gone = type("Gone", (), {"url": web.url})
        status, _, content = call(gone, "GET", "/v1/models")
        (entry,) = json.loads(content)["data"]
        assert status == 200 and entry["id"] == "tiny" and entry["sottovoce"]["connected"] is False
        assert call(gone, "POST", "/tokenize", {"prompt": "abc"})[0] == 200
        for stream in (False, True):
            status, headers, content = call(gone, "POST", "/v1/chat/completions", {**BODY, "stream": stream})
            assert status == 503 and headers["retry-after"] and b"nothing listens there" in content


def test_a_proxy_that_never_met_its_server_says_so():
    def connect():
        raise PeerGoneError("no answer")

    with WebServer(create_app(Gateway("server:1", connect))) as web:
        status, _, content = call(type("Gone", (), {"url": web.url}), "GET", "/v1/models")
        assert status == 503 and json.loads(content)["error"]["code"] == "server_unreachable"


def test_what_a_full_server_says_reaches_the_program():
    def connect():
        raise ServerBusyError("the server is full", 17)

    with WebServer(create_app(Gateway("server:1", connect), warm=False)) as web:
        found = call(type("Full", (), {"url": web.url}), "POST", "/v1/chat/completions", BODY)
        assert found[0] == 429 and found[1]["retry-after"] == "17"


def test_foreign_errors_say_nothing_about_data():
    assert "secret" not in problem_of(ValueError("my secret prompt")).message


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"null", b'{"name": 1}', b"[" * 70_000])
def test_damaged_statements_are_forgotten(tmp_path, content):
    file = StatementFile(tmp_path, "a:1")
    good = Statement("tiny", "c" * 64, "d" * 64, 96, EngineOptions(engine="clear"), 5)
    file.store(good)
    assert file.load() == good
    next(tmp_path.iterdir()).write_bytes(content)
    assert file.load() is None


def test_small_packets_leave_at_once():
    """asyncio turns Nagle's algorithm off for sockets that say TCP only; it would cost 40 ms an answer."""
    with WebServer(create_app(Gateway("server:1", lambda: None), warm=False)) as web:
        assert web._socket.proto == socket.IPPROTO_TCP
    with pytest.raises(UsageError, match="cannot listen"):
        WebServer(create_app(Gateway("server:1", lambda: None), warm=False), "192.0.2.1")


def test_names_in_host_headers():
    assert all(map(names_this_machine, ("LocalHost:80", "[::1]:8080", "[::1]", "127.0.0.1", "localhost:")))
    others = (
        "",
        ":80",
        "[]",
        "[::2]:80",
        "localhost.example",
        "127.0.0.1.example:80",
        "::1",
        "[::1",
        "[::1].example",
        "[::1]example:80",
        "localhost:example",
        "localhost\n",
        "a:b:c",
    )
    assert not any(map(names_this_machine, others))


def test_an_answered_chat_goes_on_with_its_own_tokens():
    """Even where its text would be split into other ones."""
    card, histories = tiny_model().card, Histories()

    def asked(*messages):
        return parse_chat({"model": "tiny", "messages": list(messages)}, SamplingOptions())

    first = compose(card, asked(*HELLO), histories)
    answer = (5, 256, 7)  # a special token in the middle, which no text is split into
    histories.remember(HELLO, 0, "ans", (*first.tokens, *answer))
    more = ({"role": "assistant", "content": " ans\n"}, {"role": "user", "content": "b"})
    second = compose(card, asked(*HELLO, *more), histories)
    assert second.tokens[: len(first.tokens) + 3] == (*first.tokens, *answer)
    assert second.public == first.public
    other = compose(card, asked(*HELLO, {"role": "assistant", "content": "other"}, more[1]), histories)
    assert other.tokens[len(first.tokens) :][:3] != answer
    # A chat that began publicly is another one, even with the same words.
    system = {"role": "system", "content": "s"}
    histories.remember([system, *HELLO], 0, "x", (1, 2, 3))
    public = asked({**system, "private": False}, *HELLO, {"role": "assistant", "content": "x"}, more[1])
    assert compose(card, public, histories).tokens[:3] != (1, 2, 3)


def test_stopping_the_proxy_ends_what_is_under_way():
    proxied = Proxied(plan=Plan(defaults=GenerationOptions(max_tokens=60)))
    done = []
    with proxied.running():
        proxied.gate.clear()
        body = {"model": "tiny", "messages": HELLO, "stream": True}
        thread = threading.Thread(
            target=lambda: done.append(call(proxied, "POST", "/v1/chat/completions", body))
        )
        thread.start()
        wait_for(lambda: proxied.gateway.load == (1, 0))
        stopping = threading.Thread(target=proxied.gateway.stop)
        stopping.start()
        wait_for(lambda: all(job.cancelled.is_set() for job in proxied.gateway._running.values()))
        proxied.gate.set()
        stopping.join(300)
        thread.join(300)
    assert done[0][0] == 200 and done[0][2].endswith(b"data: [DONE]\n\n")
