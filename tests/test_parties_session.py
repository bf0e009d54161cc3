"""Server and client over real sockets with TLS, on the engine without cryptography and a tiny model."""

import json
import socket
import struct
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from sottovoce.engines.base import EngineOptions
from sottovoce.engines.registry import make_engine
from sottovoce.errors import (
    CertificateChangedError,
    FrameError,
    IntegrityError,
    ModelMismatchError,
    ParameterMismatchError,
    PeerConnectionError,
    PeerGoneError,
    PromptTooLongError,
    ProtocolError,
    RefusedError,
    UsageError,
    VersionMismatchError,
)
from sottovoce.models.model import greedy
from sottovoce.net import Role, SocketChannel, run_pair, socket_pair
from sottovoce.net.frame import Kind, pack_header
from sottovoce.net.tls import Certificate, KnownHosts
from sottovoce.parties import (
    Address,
    CardCache,
    Client,
    GenerationOptions,
    SamplingOptions,
    Server,
    Welcome,
    Wish,
    generate,
)
from sottovoce.parties import protocol as protocol_module
from sottovoce.parties.protocol import Command, Verb
from tiny_model import CONFIG, tiny_model

CLEAR = Wish(engine="clear")


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return Certificate(tmp_path_factory.mktemp("key"))


class Hosted:
    """A running server and what it reported."""

    def __init__(self, model, certificate, arithmetic="float", **options):
        engine = make_engine(EngineOptions(engine="clear", arithmetic=arithmetic), model)
        engine.prepare()
        self.reports, self.seen = [], []
        self.welcome = Welcome(engine.options, engine.public(), model.card)
        self.server = Server(
            engine.session,
            self.welcome,
            tls=certificate.context() if certificate else None,
            on_close=self.reports.append,
            tap=lambda session, view: self.seen.append(bytes(view)),
            **options,
        )
        self.address = Address("127.0.0.1", self.server.port)
        self.pin = certificate.fingerprint if certificate else None

    def client(self, wish=CLEAR, **options):
        client = Client.connect(self.address, wish, self.pin, **options)
        client.setup()
        return client

    def client_when_free(self):
        """The place of a session is free a moment after its report."""
        deadline = time.monotonic() + 60
        while True:
            try:
                return self.client()
            except RefusedError:
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def wait_for_reports(self, count):
        deadline = time.monotonic() + 60
        while len(self.reports) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.reports


@pytest.fixture
def hosted(model, certificate):
    host = Hosted(model, certificate)
    with host.server:
        yield host


@pytest.fixture
def open_host(model):
    """Without TLS: for tests that send raw bytes."""
    host = Hosted(model, None)
    with host.server:
        yield host


def test_answer_equals_plaintext(hosted, model):
    prompt = model.card.chat("hello")
    pieces = []
    with hosted.client() as client:
        done = generate(client, prompt, GenerationOptions(max_tokens=12), pieces.append)
        rows = client.ledger.rows()
    assert done.token_ids == greedy(model, prompt.tokens, 12, model.card.tokenizer.eos_ids)
    assert "".join(pieces) == done.text == model.card.tokenizer.decode(done.token_ids)
    assert done.finish_reason in ("length", "stop")
    usage = done.usage
    assert usage.prompt_tokens == len(prompt) and usage.public_tokens == len(prompt.public) > 0
    assert usage.completion_tokens == len(done.token_ids)
    assert {r.phase for r in rows} >= {"setup", "prefill", "decode"}
    # Both ledgers tell the same story, the command frames included.
    (report,) = hosted.wait_for_reports(1)
    for name in ("bytes_up", "bytes_down", "rounds"):
        assert sum(r[name] for r in report.ledger if r["phase"] == "decode") == sum(
            getattr(r, name) for r in rows if r.phase == "decode"
        )
    assert report.private_tokens == len(prompt.private) + len(done.token_ids) - (
        done.finish_reason == "length"
    )
    assert usage.bytes_down > (usage.completion_tokens) * CONFIG.vocab_size * 4


def test_fixed_arithmetic_answers_like_plaintext(model, certificate):
    host = Hosted(model, certificate, arithmetic="fixed")
    prompt = model.card.chat("hello")
    with host.server, host.client(Wish(engine="clear", arithmetic="fixed")) as client:
        logits = client.prefill(prompt.public, prompt.private)
        plain = model.forward(prompt.tokens)[-1]
        assert np.abs(logits - plain).max() < 0.1
        client.decode(5)
        client.truncate(len(prompt))
        again = client.decode(5)
    assert np.abs(again - model.forward([*prompt.tokens, 5])[-1]).max() < 0.1


def test_sampling_with_a_seed_repeats(hosted, model):
    options = GenerationOptions(max_tokens=8, sampling=SamplingOptions(temperature=1.5, seed=3))
    answers = []
    for _ in range(2):
        with hosted.client() as client:
            answers.append(generate(client, model.card.plain("abc"), options).token_ids)
    assert answers[0] == answers[1]


def test_stop_string_and_end_token(hosted, model):
    prompt = model.card.plain("abc")
    whole = greedy(model, prompt.tokens, 12)
    text = model.card.tokenizer.decode(whole)
    with hosted.client() as client:
        done = generate(client, prompt, GenerationOptions(max_tokens=12, stop=(text[4:6],)))
    assert done.finish_reason == "stop" and done.text == text[: text.find(text[4:6])]


def test_truncate_goes_back(hosted, model):
    with hosted.client() as client:
        client.prefill((256,), [1, 2, 3])
        first = client.decode(4)
        client.truncate(4)
        assert np.array_equal(client.decode(4), first)
        assert client.length == 5


def test_sessions_are_isolated_and_parallel(hosted, model):
    prompts = [model.card.plain(text) for text in ("one", "two", "three")]
    wanted = [greedy(model, p.tokens, 6, model.card.tokenizer.eos_ids) for p in prompts]
    results = [None] * 3

    def ask(i):
        with hosted.client() as client:
            results[i] = generate(client, prompts[i], GenerationOptions(max_tokens=6)).token_ids

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(3)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert results == wanted


def test_prompt_longer_than_the_context_sends_nothing(hosted, model):
    with hosted.client() as client:
        sent = client.ledger.total().frames_up
        with pytest.raises(PromptTooLongError, match="context of 96"):
            generate(client, model.card.plain("x" * 100), GenerationOptions(max_tokens=1))
        with pytest.raises(PromptTooLongError, match="fewer new tokens"):
            generate(client, model.card.plain("x"), GenerationOptions(max_tokens=96))
        assert client.ledger.total().frames_up == sent
        generate(client, model.card.plain("x"), GenerationOptions(max_tokens=2))


def test_cards_are_cached_and_checked(hosted, tmp_path):
    cards = CardCache(tmp_path)
    hosted.client(cards=cards).close()
    (path,) = tmp_path.iterdir()
    before = len(hosted.seen)
    client = hosted.client(cards=cards)
    assert client.ledger.total("setup").bytes_down < len(path.read_bytes())
    client.close()
    path.write_bytes(b"damaged")
    client = hosted.client(cards=cards)
    assert client.card.digest == hosted.welcome.card.digest
    client.close()
    assert len(hosted.seen) > before


# --- refusals
# -------------------------------------------------------------------------------------------------------


def test_a_private_client_refuses_the_clear_engine(hosted):
    with pytest.raises(ParameterMismatchError, match="wants engine 'hybrid', the server runs 'clear'"):
        hosted.client(Wish())
    (report,) = hosted.wait_for_reports(1)
    assert report.ended.startswith("ParameterMismatchError")


def test_other_model(hosted, model):
    with pytest.raises(ModelMismatchError):
        hosted.client(Wish(engine="clear", model="0" * 64))
    hosted.client(Wish(engine="clear", model=model.digest[:32].upper())).close()
    for short in (model.digest[:31], "", "x" * 64, model.digest + "0"):
        with pytest.raises(UsageError, match="no commitment"):
            hosted.client(Wish(engine="clear", model=short))


def test_both_sides_hold_a_digest_of_what_was_agreed(open_host, model):
    channel = raw_channel(open_host)
    welcome = protocol_module.client_handshake(channel, CLEAR)
    assert channel.agreed == welcome.digest() and len(channel.agreed) == 32
    other = replace(welcome, options=replace(welcome.options, arithmetic="fixed"))
    assert other.digest() != channel.agreed
    channel.close()


def test_other_arithmetic(hosted):
    with pytest.raises(ParameterMismatchError, match="arithmetic"):
        hosted.client(Wish(engine="clear", arithmetic="fixed"))


WISH = {
    "engine": "clear",
    "kv": None,
    "arithmetic": None,
    "correlations": "pair",
    "profile": None,
    "model": None,
}


def hello(channel, **changes):
    fields = {
        "protocol": protocol_module.PROTOCOL,
        "release": "9.9",
        "parameters": protocol_module.parameters_digest(),
        "wish": WISH,
        "caller": {"purpose": "session", "session": None, "api_key": None},
    }
    channel.send(json.dumps({**fields, **changes}).encode())


def raw_channel(host):
    return SocketChannel(Role.CLIENT, socket.create_connection(("127.0.0.1", host.server.port)), timeout=60)


@pytest.mark.parametrize(
    "changes, error",
    [
        ({"protocol": 99}, VersionMismatchError),
        ({"protocol": 99, "wish": None}, VersionMismatchError),
        ({"parameters": "0" * 64}, ParameterMismatchError),
        ({"wish": {"engine": "clear"}}, ProtocolError),
        ({"wish": {**WISH, "engine": 3}}, ProtocolError),
        ({"wish": {**WISH, "correlations": None}}, ProtocolError),
        ({"wish": {**WISH, "correlations": "dealer"}}, ParameterMismatchError),
        ({"wish": []}, ProtocolError),
        ({"more": 1}, ProtocolError),
    ],
)
def test_refused_hello(open_host, changes, error):
    channel = raw_channel(open_host)
    hello(channel, **changes)
    with pytest.raises(error):
        channel.recv_message(1 << 20)
    assert open_host.wait_for_reports(1)[0].ended.startswith(error.__name__)


def test_client_refuses_a_server_of_another_version():
    """The server, too, is told why."""
    client_end, server_end = socket_pair()
    answer = {"protocol": 99, "release": "2.0", "parameters": "", "offer": {}}
    server_end.send(json.dumps(answer).encode())

    def server(channel):
        channel.recv_message(1 << 14)
        with pytest.raises(VersionMismatchError, match=f"protocol version {protocol_module.PROTOCOL}"):
            channel.recv(33)

    def client(channel):
        with pytest.raises(VersionMismatchError):
            Client(channel, CLEAR)

    run_pair(client, server, (client_end, server_end))


def test_disagreement_about_the_offer(open_host):
    channel = raw_channel(open_host)
    hello(channel)
    channel.recv_message(1 << 20)
    channel.send(bytes(33))
    with pytest.raises(ParameterMismatchError):
        channel.recv_message(1 << 20)


def test_changed_certificate(hosted, model, tmp_path):
    pins = KnownHosts(tmp_path / "known_hosts")
    client = Client.connect(hosted.address, CLEAR, pins)
    assert client.identity.first_use
    client.close()
    pins.path.write_text(f"{hosted.address} sha256:{'0' * 64}\n")
    with pytest.raises(CertificateChangedError):
        Client.connect(hosted.address, CLEAR, pins)


def test_nothing_listens():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(PeerConnectionError, match="nothing listens there"):
        Client.connect(Address("127.0.0.1", port), CLEAR, None)
    with pytest.raises(PeerConnectionError, match="name is unknown"):
        Client.connect(Address("no-such-host.invalid", 1), CLEAR, None)


def test_wrong_port_that_speaks_something_else():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            peer, _ = listener.accept()
            peer.sendall(b"220 mail.example ESMTP ready\r\n")
            peer.recv(1000)
            time.sleep(0.2)
            peer.close()

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(FrameError, match="does not speak the Sottovoce protocol"):
            Client.connect(Address("127.0.0.1", listener.getsockname()[1]), CLEAR, None)


def test_port_in_use(hosted, model):
    with pytest.raises(UsageError, match="cannot listen"):
        Server(lambda: None, hosted.welcome, port=hosted.server.port, tls=None)


def test_full_server(model, certificate):
    host = Hosted(model, certificate, max_sessions=1)
    with host.server:
        client = host.client()
        with pytest.raises(RefusedError, match="full"):
            host.client()
        client.close()
        host.wait_for_reports(1)
        host.client_when_free().close()


# --- clients that misbehave
# -----------------------------------------------------------------------------------------


def still_serves(host, model):
    with host.client() as client:
        assert len(generate(client, model.card.plain("ok"), GenerationOptions(max_tokens=2)).token_ids) > 0


def ready(host):
    """A raw channel after a correct handshake."""
    client = Client.connect(host.address, CLEAR, None)
    client.setup()
    return client.channel


@pytest.mark.parametrize(
    "raw, error",
    [
        (b"", IntegrityError),
        (b"\x09" + bytes(8), IntegrityError),
        (Command(Verb.PREFILL, 1, (1, 2)).pack()[:-1], IntegrityError),
        (struct.pack("<BIII", Verb.DECODE, 0, 1, 5), IntegrityError),
        (Command(Verb.PREFILL, 0, (1,)).pack(), ProtocolError),
        (Command(Verb.PREFILL, 1, (CONFIG.vocab_size,)).pack(), ProtocolError),
        (Command(Verb.PREFILL, 10_000).pack(), ProtocolError),
        (Command(Verb.TRUNCATE, 1).pack(), ProtocolError),
    ],
)
def test_bad_commands(open_host, model, raw, error):
    channel = ready(open_host)
    channel.send(raw)
    with pytest.raises(error):
        channel.recv(1)
    still_serves(open_host, model)


def test_truncated_and_oversized_frames(open_host, model):
    for raw in (
        pack_header(Kind.DATA, 9, 2) + b"abc",
        pack_header(Kind.DATA, 1 << 29, 2),
        b"SV\x07\x00\0\0\0\0",
        b"x" * 64,
    ):
        channel = ready(open_host)
        channel._sock.send(raw)
        channel.close()
    reports = open_host.wait_for_reports(4)
    assert sorted(r.ended.split(":")[0] for r in reports) == [
        "FrameError",
        "FrameError",
        "PeerGoneError",
        "VersionMismatchError",
    ]
    still_serves(open_host, model)


def test_client_that_dies_in_mid_token(open_host, model):
    channel = ready(open_host)
    channel.send(Command(Verb.PREFILL, 2).pack())
    channel.send(bytes(4))  # half of what the step needs, in the wrong size
    channel.close()
    assert open_host.wait_for_reports(1)[0].ended.startswith(("FrameError", "PeerGoneError"))
    channel = ready(open_host)
    channel.send(Command(Verb.DECODE).pack())
    channel.close()
    assert open_host.wait_for_reports(2)[1].ended.startswith("PeerGoneError")
    still_serves(open_host, model)


def test_public_tokens_only_at_the_beginning(open_host):
    with pytest.raises(ProtocolError, match="beginning"):
        with open_host.client() as client:
            client.prefill((256,), [1])
            client.prefill((256,), [1])


def test_an_internal_error_does_not_quote_data(model, certificate):
    class Broken:
        def setup(self, channel):
            raise ValueError("secret prompt")

        def close(self):
            pass

    host = Hosted(model, certificate)
    host.server._open_party = Broken
    with host.server:
        client = Client.connect(host.address, CLEAR, host.pin)
        with pytest.raises(ProtocolError) as caught:
            client.channel.recv(1)
        (report,) = host.wait_for_reports(1)
    assert "secret" not in str(caught.value) + report.ended
    assert report.ended.startswith("internal error (ValueError in")


# --- endings
# --------------------------------------------------------------------------------------------------------


def test_server_stops_idle_sessions_with_a_reason(model, certificate):
    host = Hosted(model, certificate)
    with host.server:
        client = host.client()
        client.prefill((), [1])
        host.server.stop()
        assert host.server.wait(5)
        with pytest.raises(PeerGoneError, match="shutting down"):
            client.decode(1)
    with pytest.raises(PeerConnectionError):
        host.client()


def test_idle_sessions_end(model, certificate):
    host = Hosted(model, certificate, idle_timeout=2.0)
    with host.server:
        client = host.client()
        (report,) = host.wait_for_reports(1)
        assert "idle" in report.ended
        with pytest.raises(PeerGoneError, match="idle"):
            client.prefill((), [1])


def test_server_that_dies_in_mid_token(model):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        engine = make_engine(EngineOptions(engine="clear"), model)

        def half_serve():
            sock, _ = listener.accept()
            channel = SocketChannel(Role.SERVER, sock)
            protocol_module.server_handshake(channel, Welcome(engine.options, engine.public(), model.card))
            channel.recv_message(1000)
            channel._sock.send(pack_header(Kind.DATA, CONFIG.vocab_size * 4, 2) + bytes(100))
            channel.close()

        threading.Thread(target=half_serve, daemon=True).start()
        client = Client.connect(Address("127.0.0.1", listener.getsockname()[1]), CLEAR, None)
        client.setup()
        with pytest.raises(PeerGoneError):
            client.prefill((), [1])


def test_ctrl_c_keeps_the_text_and_frees_the_server(hosted, model):
    def interrupt(text):
        pieces.append(text)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    pieces = []
    client = hosted.client()
    done = generate(client, model.card.plain("abc"), GenerationOptions(max_tokens=50), interrupt)
    assert done.finish_reason == "cancelled" and len(done.token_ids) >= 3
    assert done.text.startswith("".join(pieces[:2]))
    hosted.wait_for_reports(1)
    still_serves(hosted, model)


def test_addresses():
    assert Address.parse("localhost") == Address("localhost", 7443)
    assert Address.parse("h:1") == Address("h", 1)
    assert Address.parse("[::1]:80") == Address("::1", 80) and str(Address("::1", 80)) == "[::1]:80"
    assert Address.parse("[::1]") == Address("::1", 7443)
    for bad in ("", ":1", "h:x", "h:0", "h:70000"):
        with pytest.raises(UsageError, match="host:port"):
            Address.parse(bad)
