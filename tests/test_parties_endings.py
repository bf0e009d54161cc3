"""Clients that misbehave, and how sessions end: neither costs others anything."""

# ruff: noqa: F811  (fixtures are imported)

import socket
import struct
import threading

import numpy as np
import pytest

from hosted import CLEAR, Hosted, certificate, hosted, model, open_host  # noqa: F401  (fixtures)
from sottovoce.engines.base import EngineOptions
from sottovoce.engines.registry import make_engine
from sottovoce.errors import (
    IntegrityError,
    PeerConnectionError,
    PeerGoneError,
    ProtocolError,
    UsageError,
)
from sottovoce.net import Role, SocketChannel
from sottovoce.net.frame import Kind, pack_header
from sottovoce.parties import (
    Address,
    Client,
    GenerationOptions,
    ServerSession,
    Welcome,
    generate,
)
from sottovoce.parties import protocol as protocol_module
from sottovoce.parties.protocol import Command, Verb
from tiny_model import CONFIG


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
        assert host.server.wait(300)
        with pytest.raises(PeerGoneError, match="shutting down"):
            client.decode(1)
    with pytest.raises(PeerConnectionError):
        host.client()


def test_a_stopping_server_finishes_the_step_it_is_at(model, certificate, monkeypatch):
    host, begun, go_on = Hosted(model, certificate), threading.Event(), threading.Event()
    original = ServerSession._execute

    def slow(self, party, command):
        begun.set()
        assert go_on.wait(300)
        original(self, party, command)

    monkeypatch.setattr(ServerSession, "_execute", slow)
    with host.server:
        client, found = host.client(), []
        step = threading.Thread(target=lambda: found.append(client.prefill((), [3, 31])))
        step.start()
        assert begun.wait(300)
        host.server.stop()
        go_on.set()
        step.join()
        assert np.allclose(found[0], model.forward([3, 31])[-1], atol=1e-4)
        with pytest.raises(PeerGoneError, match="shutting down"):
            client.decode(5)
        assert host.server.wait(300)


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
    texts = (
        "",
        ":1",
        "h:x",
        "h:0",
        "h:70000",
        "h:-1",
        "h:²",
        "http://h:1",
        "h/x",
        "[::1",
        "a b",
        "me@h:1",
        "::1",
    )
    for bad in texts:
        with pytest.raises(UsageError, match="host:port"):
            Address.parse(bad)
